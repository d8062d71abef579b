"""Metrics of a run, as JSON lines and TensorBoard events; a resumed run cuts both back to its checkpoint."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64
from tensorboardX import SummaryWriter

from omnivinci_jax.planning.flops import FlopCounter, Work
from omnivinci_jax.planning.hardware import chip_of
from omnivinci_jax.settings import TrainConfig

Item = TypeVar("Item")


class Meter:
    """Where time goes between two looks at it: work done a second, and shares of time spent not computing.

    Work is that of the samples planned for the global batch; padding is none. FLOPs are those of planning/flops.py.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh):
        self._window_seconds = config.model.window_samples / config.model.sampling_rate
        self._counter = FlopCounter(config)
        chip = chip_of(mesh.devices.flat[0].device_kind)
        self._peak = chip.flops * mesh.size if chip else None
        self._start()

    def _start(self) -> None:
        self._since = time.monotonic()
        self._steps, self._waiting, self._saving, self._pause = 0, 0.0, 0.0, 0.0
        self._work = np.zeros(len(Work._fields))

    def waited(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with the time noted that each is waited for."""
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
        """Around what the loop does for a checkpoint before it goes on."""
        before = time.monotonic()
        yield
        self._saving += time.monotonic() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training."""
        before = time.monotonic()
        yield
        self._pause += time.monotonic() - before

    def add(self, sizes: Int64[np.ndarray, "samples 4"]) -> None:
        """Notes a step and its samples' (slots, tiles, windows, clips)."""
        self._steps += 1
        slots, *media = sizes.sum(axis=0)
        self._work += Work(slots, np.square(sizes[:, 0]).sum(), *media)  # images and sounds count as clips too

    def rates(self) -> dict[str, float]:
        """Since the last call.

        Seconds a step; tokens (text, vision and audio slots), tiles (a video frame is one) and seconds of sound windows
        a second; model TFLOP/s of all parts and of the encoders among them, and where the chip's peak is known the
        share of it that all make (MFU); shares of the time that the loop waited for the loader and was held up by a
        checkpoint.
        """
        seconds = time.monotonic() - self._since - self._pause
        work = Work(*self._work / seconds)
        flops = self._counter.step(work)
        rates = {
            "step_seconds": seconds / self._steps,
            "tokens_per_second": work.slots,
            "tiles_per_second": work.tiles,
            "audio_seconds_per_second": work.windows * self._window_seconds,
            "tflops_per_second": flops.total / 1e12,
            "encoder_tflops_per_second": (flops.vision + flops.sound) / 1e12,
            "loader_wait": self._waiting / seconds,
            "checkpoint_stall": self._saving / seconds,
        }
        if self._peak:
            rates["mfu"] = flops.total / self._peak
        self._start()
        return rates


class MetricsLog:
    """Writes `metrics.jsonl` (one object a line, with its step) and TensorBoard events."""

    def __init__(self, folder: Path, start: int):
        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= start]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "a")  # noqa: SIM115 - closed in close()
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
