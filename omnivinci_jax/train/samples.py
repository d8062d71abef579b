"""The samples of a run: those planned for each step, how many were read, and which ones were skipped."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from omnivinci_jax.data.loader import Plan
from omnivinci_jax.data.mixture import Mixture
from omnivinci_jax.errors import DataError
from omnivinci_jax.settings import DataConfig
from omnivinci_jax.train.metrics import Work
from omnivinci_jax.train.source_metrics import SourceMeter
from omnivinci_jax.train.trainer import Hook, Progress, Trainer

log = logging.getLogger("omnivinci")


@dataclass
class DataProgress(Progress):
    """The progress of a run over planned samples.

    read: samples read by all processes; tokens: their slots, including media slots, without padding.
    skipped: number of samples that could not be read, by source.
    data: digest of everything that determines the order of the samples.
    block: index of the block in which the next step begins, and of the block's first group (`Plan`).
    """

    read: int = 0
    tokens: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    data: str = ""
    block: Sequence[int] = (0, 0)  # a list if it was read from JSON


class Samples(Hook):
    """Counts the samples of every step, and stops the run if too many could not be read.

    Args:
        settings: gives `groups` and `max_skipped`.
        skipped_file: lists the samples that this process could not read.
    """

    def __init__(self, mixture: Mixture, plan: Plan, progress: DataProgress, settings: DataConfig, skipped_file: Path):
        self._mixture, self._plan, self._progress = mixture, plan, progress
        self._groups, self._max_skipped, self._skipped_file = settings.groups, settings.max_skipped, skipped_file
        self._sources = SourceMeter(mixture)

    def planned(self, step: int) -> list[int]:
        """Returns the indices of the samples planned for a step; the first step is 1."""
        groups = (self._plan[index] for index in range((step - 1) * self._groups, step * self._groups))
        return [sample for rows in groups for row in rows for sample in row]

    def sizes(self, step: int) -> Int64[np.ndarray, "samples 4"]:
        """Returns (slots, tiles, windows, clips) of each sample planned for a step."""
        return self._mixture.sizes[self.planned(step)]

    def work(self, step: int) -> Work:
        """Returns the work of a step: the sum over its planned samples."""
        sizes = self.sizes(step)
        slots, *media = sizes.sum(axis=0)
        return Work(slots, np.square(sizes[:, 0]).sum(), *media)  # images and sounds count as clips too

    def where(self, step: int) -> str:
        """Describes a step and where its samples come from, for messages."""
        return f"step {step}, " + ", ".join(map(self._mixture.where, sorted(self.planned(step))))

    def source_metrics(self) -> dict[str, float]:
        """Returns the metrics of each source; see SourceMeter.values."""
        return self._sources.values(self._progress.skipped)

    def list_skipped(self, reasons: Mapping[int, str]) -> None:
        """Logs and lists the samples that this process could not read."""
        for line in reasons.values():
            log.warning("skipped: %s", line)
            with open(self._skipped_file, "a", errors="backslashreplace") as file:
                file.write(line + "\n")

    def after_step(self, trainer: Trainer) -> None:
        """Records where the next step begins, for the checkpoint."""
        self._progress.block = self._plan.block_of(self._progress.step * self._groups)

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Raises DataError if more than the fraction `max_skipped` of the samples could not be read."""
        progress = self._progress
        progress.read += int(metrics["samples"])
        progress.tokens += int(metrics["tokens"])
        for source, count in self._sources.add(self.planned(step), metrics).items():
            progress.skipped[source] = progress.skipped.get(source, 0) + count
        skipped = sum(progress.skipped.values())
        seen = progress.read + skipped
        # The fraction is of at least 100 samples: otherwise one bad file at the start would end the run.
        if skipped > self._max_skipped * max(seen, 100):
            file = self._skipped_file
            listed = sorted(set(file.read_text().splitlines())) if file.exists() else []
            raise DataError(
                f"{skipped} of {seen} samples could not be read, more than data.max_skipped = {self._max_skipped:g} "
                "allows:\n  " + "\n  ".join(listed[:50])
            )
