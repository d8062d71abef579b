"""Metrics of a run, as JSON lines and TensorBoard events; a resumed run cuts both back to its checkpoint."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricsLog:
    """Writes `metrics.jsonl` (one object a line, with its step) and TensorBoard events."""

    def __init__(self, folder: Path, start: int):
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self._path) if line["step"] <= start]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self._path, "a")  # noqa: SIM115 - closed in close()
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: dict[str, float], prefix: str = "train") -> None:
        """One line; `prefix` says what was measured (train or val)."""
        self._file.write(json.dumps({"step": step, "split": prefix, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file; a last line cut short by a kill is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
