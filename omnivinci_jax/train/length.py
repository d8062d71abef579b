"""The length of a run: a number of steps, of conversations read, or of tokens without padding."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from omnivinci_jax.data.loader import Plan
from omnivinci_jax.train.samples import Samples
from omnivinci_jax.train.trainer import Trainer

# An estimate packs this many blocks of the plan: some 8,000 conversations, at a second per block.
_PACKED_BLOCKS = 4


@dataclass(frozen=True)
class Length:
    """The length of a run; exactly one of the three is above 0."""

    steps: int
    conversations: int
    tokens: int

    def expected_steps(self, plan: Plan, sizes: Int64[np.ndarray, "samples 4"], groups: int) -> int:
        """Returns the number of steps, of `groups` groups each, if every sample can be read.

        It is exact if the first blocks of the plan suffice, and extrapolated from them otherwise. (Packing all 24
        million conversations of the paper would take hours.)
        """
        if self.steps:
            return self.steps
        target, counted, number = self.conversations or self.tokens, 0, 0
        while counted < target and plan.block_of(number)[0] < _PACKED_BLOCKS:
            counted += self.count(sizes[[sample for row in plan[number] for sample in row]])
            number += 1
        return math.ceil(number * max(1.0, target / counted) / groups)

    def is_done(self, trainer: Trainer, samples: Samples) -> bool:
        """Returns whether the step that started last is the last of the run."""
        progress = trainer.progress
        if self.steps:
            return progress.step >= self.steps
        target, counter = (self.conversations, "read") if self.conversations else (self.tokens, "tokens")
        # A step reads at most its planned samples. While these cannot reach the target, do not wait for the device.
        if trainer.pending and getattr(progress, counter) + self.count(samples.sizes(progress.step)) < target:
            return False
        trainer.consume_metrics()
        return getattr(progress, counter) >= target

    def count(self, sizes: Int64[np.ndarray, "samples 4"]) -> int:
        """Counts samples with these sizes, as conversations or as tokens."""
        return len(sizes) if self.conversations else int(sizes[:, 0].sum())
