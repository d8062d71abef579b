"""Evaluation by rewards: greedy answers to the prompts of a file."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from omnivinci_jax.data.index import Index
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Sampling
from omnivinci_jax.rl.prompts import LoadedPrompt, load_prompt
from omnivinci_jax.rl.rewards import Rewards
from omnivinci_jax.rl.rollouts import rollout


@dataclass(frozen=True)
class RewardScore:
    """Mean rewards over a file.

    rewards: mean of each reward by name; reward: of their weighted sum. length: mean tokens of an answer.
    count: prompts answered; skipped: one line for each that could not be read.
    """

    reward: float
    rewards: Mapping[str, float]
    length: float
    count: int
    skipped: tuple[str, ...] = ()

    @property
    def overall(self) -> float:
        """The weighted sum of the rewards, which selects the best model."""
        return self.reward

    @property
    def metrics(self) -> dict[str, float]:
        """All means by name."""
        rewards = {f"{name}_reward": value for name, value in self.rewards.items()}
        return {"reward": self.reward, **rewards, "length": self.length}


def evaluate(
    engine: Engine, params: dict, prompts: Index, rewards: Rewards, max_new_tokens: int, at_once: int
) -> RewardScore:
    """Answers every prompt greedily with `params`, `at_once` prompts together; raises UserError if a reward fails."""
    engine.update(params)
    sampling, values, lengths, skipped = Sampling(max_new_tokens=max_new_tokens), [], [], []
    for start in range(0, len(prompts), at_once):
        loaded = [
            load_prompt(prompts, sample, engine.processor)
            for sample in range(start, min(start + at_once, len(prompts)))
        ]
        skipped += [prompt for prompt in loaded if isinstance(prompt, str)]
        present = [prompt for prompt in loaded if isinstance(prompt, LoadedPrompt)]
        found = rollout(engine, present, [sampling] * len(present), 1, rewards)
        values.append(found.rewards[..., 0])
        lengths += [len(group[0].tokens) for group in found.requests]
    table = np.concatenate(values, axis=1)
    means = table.mean(axis=1) if table.size else np.zeros(len(table))
    return RewardScore(
        float(rewards.total(means)),
        dict(zip(rewards.names, means.tolist(), strict=True)),
        float(np.mean(lengths)) if lengths else 0.0,
        len(lengths),
        tuple(skipped),
    )
