"""Advantages of the answers to one prompt (Equation 7), and the weight of each answer's tokens in the loss."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

Variant = Literal["grpo", "dapo", "dr_grpo"]


def group_advantages(
    rewards: Float64[np.ndarray, "prompts answers"], variant: Variant
) -> Float64[np.ndarray, "prompts answers"]:
    """Returns the advantage of each answer over the other answers to its prompt.

    A = (r - mean(r)) / std(r) (Equation 7, with the standard deviation of the whole group); `dr_grpo` does not divide.
    Answers whose rewards are all equal have no advantage.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if variant != "dr_grpo":
        # Rounding may leave a standard deviation above 0.
        centred /= np.where(all_equal(rewards), 1.0, rewards.std(axis=1))[:, None]
    return np.where(all_equal(rewards)[:, None], 0.0, centred)


def all_equal(rewards: Float64[np.ndarray, "prompts answers"]) -> Bool[np.ndarray, " prompts"]:
    """Returns which prompts have answers of equal reward, which carry no gradient."""
    return rewards.max(axis=1) == rewards.min(axis=1)


def token_weights(
    lengths: Int[np.ndarray, " n"], kept: Bool[np.ndarray, " n"], variant: Variant, max_length: int
) -> Float64[np.ndarray, " n"]:
    """Returns the weight of each token of n answers; the loss is the weighted sum over all their tokens.

    - grpo: the mean over the tokens of an answer, then over all answers.
    - dapo: the mean over the tokens of all answers, so that a long answer counts more ("token-level loss").
    - dr_grpo: the sum over the tokens of an answer, divided by `max_length`, then the mean over all answers.

    Args:
        lengths: tokens of each answer of an update, the end token included.
        kept: which answers count; the others weigh 0. Means over answers divide by all n, means over tokens by those of
            the answers that count.
        variant: see above.
        max_length: maximum tokens of an answer.
    """
    if variant == "grpo":
        weights = 1 / (lengths * len(lengths))
    elif variant == "dapo":
        weights = np.full(len(lengths), 1 / max(int(lengths[kept].sum()), 1))
    else:
        weights = np.full(len(lengths), 1 / (max_length * max(len(lengths), 1)))
    return np.where(kept, weights, 0.0)
