"""How long a run is: a number of steps, of conversations read, or of tokens that are not padding."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from omnivinci_jax.data.loader import Plan
from omnivinci_jax.train.samples import Samples
from omnivinci_jax.train.trainer import Trainer

# Blocks of the plan that an estimate packs, a second each; they hold some 8,000 conversations.
_PACKED_BLOCKS = 4


@dataclass(frozen=True)
class Length:
    """One of the three is above 0."""

    steps: int
    conversations: int
    tokens: int

    def expected_steps(self, plan: Plan, sizes: Int64[np.ndarray, "samples 4"], groups: int) -> int:
        """Steps of `groups` groups that the run takes when every sample can be read.

        Exact where the first blocks of the plan are enough; otherwise the others are taken to be like them. (Packing
        all 24 million conversations of the paper would take hours.)
        """
        if self.steps:
            return self.steps
        target, counted, number = self.conversations or self.tokens, 0, 0
        while counted < target and plan.block_of(number)[0] < _PACKED_BLOCKS:
            counted += self.count(sizes[[sample for row in plan[number] for sample in row]])
            number += 1
        return math.ceil(number * max(1.0, target / counted) / groups)

    def is_done(self, trainer: Trainer, samples: Samples) -> bool:
        """Whether the last step that started is the last of the run."""
        progress = trainer.progress
        if self.steps:
            return progress.step >= self.steps
        target, counter = (self.conversations, "read") if self.conversations else (self.tokens, "tokens")
        # A step reads at most what was planned for it: until that could be enough, nobody waits for the device.
        if trainer.pending and getattr(progress, counter) + self.count(samples.sizes(progress.step)) < target:
            return False
        trainer.consume_metrics()
        return getattr(progress, counter) >= target

    def count(self, sizes: Int64[np.ndarray, "samples 4"]) -> int:
        """What samples of these sizes count."""
        return len(sizes) if self.conversations else int(sizes[:, 0].sum())
