"""The rewards of an answer: its format, its accuracy, and own functions, weighted by the configuration."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from omnivinci_jax.data.questions import Question
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.rl.reward_workers import RewardWorkers
from omnivinci_jax.settings import GRPOConfig, nearest

_FORMAT = re.compile(r"\s*<think>((?:(?!</?think>|</?answer>).)*)</think>\s*<answer>((?:(?!</?think>|</?answer>).)*)"
                     r"</answer>\s*", re.DOTALL)  # fmt: skip
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)


class Answered(NamedTuple):
    """A text that answers a record's prompt; `where` is the record's file and line."""

    prompt: str
    text: str
    record: dict[str, Any]
    question: Question
    where: str


def format_reward(answered: Answered) -> float:
    """Returns 1 if the text is <think>...</think><answer>...</answer> in full, else 0."""
    return float(_FORMAT.fullmatch(answered.text) is not None)


def accuracy_reward(answered: Answered) -> float:
    """Returns 1 if the text has one <answer>...</answer>, with the letter or the text of the right option, else 0."""
    found = _ANSWER.findall(answered.text)
    return float(len(found) == 1 and answered.question.is_right(found[0]))


BUILT_IN: dict[str, Callable[[Answered], float]] = {"accuracy": accuracy_reward, "format": format_reward}


class Rewards:
    """The rewards of a configuration; a context that ends the processes of own functions."""

    def __init__(self, settings: GRPOConfig):
        """Raises ConfigError for an unknown built-in reward."""
        self._settings = settings
        self._workers: dict[str, RewardWorkers] = {}
        for reward in settings.rewards:
            if reward.function:
                self._workers[reward.name] = RewardWorkers(
                    reward.name, reward.function, settings.reward_workers, settings.reward_seconds
                )
            elif reward.name not in BUILT_IN:
                raise ConfigError(
                    f"config.grpo.rewards.{reward.name}: no such reward{nearest(reward.name, BUILT_IN)}, or give its "
                    "function as module:function"
                )

    def __enter__(self) -> "Rewards":
        return self

    def __exit__(self, *_: object) -> None:
        for workers in self._workers.values():
            workers.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rewards."""
        return tuple(reward.name for reward in self._settings.rewards)

    def __call__(self, answers: Sequence[Answered]) -> Float64[np.ndarray, "rewards answers"]:
        """Returns each reward of each answer, not weighted.

        Raises:
            UserError: an own function raises, takes too long, or returns no finite number; names the record.
        """
        rows = [
            self._workers[name](answers) if name in self._workers else [BUILT_IN[name](item) for item in answers]
            for name in self.names
        ]
        return np.array(rows, np.float64).reshape(len(self.names), len(answers))

    def total(self, rewards: Float64[np.ndarray, "rewards ..."]) -> Float64[np.ndarray, "..."]:
        """Returns the weighted sums."""
        return np.tensordot([reward.weight for reward in self._settings.rewards], rewards, 1)
