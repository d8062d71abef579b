"""Metrics of a run, as JSON lines and TensorBoard events. A resumed run cuts both back to its checkpoint."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from omnivinci_jax import strict_json
from omnivinci_jax.paths import AnyPath
from omnivinci_jax.train.trainer import Hook, Trainer

Item = TypeVar("Item")


class Work(NamedTuple):
    """The content of all groups of a step, without padding.

    slots: of all conversations; slot_pairs: sum of slots² over conversations.
    tiles, windows: inputs of the towers.
    clips: videos with sound, which OmniAlignNet compares; assumed to share all tiles and windows evenly.
    """

    slots: int
    slot_pairs: int
    tiles: int
    windows: int
    clips: int


class Meter(Hook):
    """Measures steps, work and waiting times between two calls of `rates`.

    It must precede Log in the list of hooks, because Log calls `rates`.

    Args:
        work_of: returns the work of a step, without padding.
        work_rates: maps the work per second to metrics.
    """

    def __init__(self, work_of: Callable[[int], Work], work_rates: Callable[[Work], dict[str, float]]):
        self._work_of, self._work_rates = work_of, work_rates
        self._start()

    def _start(self) -> None:
        self._since = time.monotonic()
        self._steps, self._waiting, self._saving, self._pause = 0, 0.0, 0.0, 0.0
        self._work = np.zeros(len(Work._fields))

    def after_step(self, trainer: Trainer) -> None:
        """Counts the step and its work."""
        self._steps += 1
        self._work += self._work_of(trainer.progress.step)

    def waited(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items, and counts the time that the loop waits for them."""
        iterator = iter(items)
        while True:
            before = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waiting += time.monotonic() - before
            yield item

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Counts the time of the block as spent on a checkpoint."""
        before = time.monotonic()
        yield
        self._saving += time.monotonic() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of the block, in which the run does not train."""
        before = time.monotonic()
        yield
        self._pause += time.monotonic() - before

    def rates(self) -> dict[str, float]:
        """Returns metrics since the last call: seconds per step, rates of the work, and the fractions of the time that
        the loop waited for the loader (`loader_wait`) and for checkpoints (`checkpoint_stall`).
        """
        seconds = time.monotonic() - self._since - self._pause
        rates = {
            "step_seconds": seconds / self._steps,
            **self._work_rates(Work(*self._work / seconds)),
            "loader_wait": self._waiting / seconds,
            "checkpoint_stall": self._saving / seconds,
        }
        self._start()
        return rates


class MetricsLog:
    """Writes `metrics.jsonl` (one object per line, with its step) and TensorBoard events."""

    def __init__(self, folder: Path, start: int):
        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= start]
        path.write_text("".join(strict_json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "a")  # noqa: SIM115 - closed in close()
        self._board = EventFileWriter(str(folder / "tensorboard"))
        # TensorBoard drops what an earlier run logged from this step on.
        restart = SessionLog(status=SessionLog.START)
        self._board.add_event(Event(wall_time=time.time(), step=start + 1, session_log=restart))

    def write(self, step: int, values: dict[str, float], prefix: str = "train") -> None:
        """Writes one line, with null for what is not finite; `prefix` is the split (train or val)."""
        self._file.write(strict_json.dumps({"step": step, "split": prefix, **values}) + "\n")
        self._file.flush()
        scalars = [Summary.Value(tag=f"{prefix}/{name}", simple_value=value) for name, value in values.items()]
        self._board.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Flushes and closes both outputs."""
        self._file.close()
        self._board.close()


def read_metrics(path: AnyPath) -> list[dict]:
    """Reads the lines of a metrics file, without a last line that a kill cut short."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
