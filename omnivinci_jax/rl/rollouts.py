"""Rollouts: several answers to each prompt, sampled by the engine from one prefill, and their rewards."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Prompt, Request, Sampling
from omnivinci_jax.rl.advantages import all_equal
from omnivinci_jax.rl.prompts import LoadedPrompt
from omnivinci_jax.rl.rewards import Answered, Rewards


@dataclass(frozen=True)
class Rollout:
    """The answers to some prompts, as many to each.

    requests: of each prompt, finished. rewards: each reward of each answer; total: their weighted sum.
    """

    prompts: Sequence[LoadedPrompt]
    requests: list[list[Request]]
    texts: list[list[str]]
    rewards: Float64[np.ndarray, "rewards prompts answers"]
    total: Float64[np.ndarray, "prompts answers"] = field(repr=False)


def rollout(
    engine: Engine,
    prompts: Sequence[LoadedPrompt],
    sampling: Sequence[Sampling],
    answers: int,
    rewards: Rewards,
    resamples: int = 0,
) -> Rollout:
    """Samples `answers` answers to each prompt, and rewards them.

    The media of a prompt are encoded once, and its keys and values are shared by its answers. The answers to a prompt
    whose rewards are all equal are sampled anew, with other random numbers, up to `resamples` times.

    Raises:
        UserError: a reward fails.
    """
    encoded = [engine.encode(prompt.row, prompt.tiles, prompt.windows) for prompt in prompts]
    requests = _sample(engine, encoded, sampling, range(answers))
    values = _reward(engine, prompts, requests, answers, rewards)
    for attempt in range(1, resamples + 1):
        again = np.flatnonzero(all_equal(rewards.total(values))).tolist()
        if not again:
            break
        samples = range(attempt * answers, (attempt + 1) * answers)
        new = _sample(engine, [encoded[n] for n in again], [sampling[n] for n in again], samples)
        values[:, again] = _reward(engine, [prompts[n] for n in again], new, answers, rewards)
        for n, group in zip(again, new, strict=True):
            requests[n] = group
    texts = [[answer_text(engine, request) for request in group] for group in requests]
    return Rollout(prompts, requests, texts, values, rewards.total(values))


def answer_text(engine: Engine, request: Request) -> str:
    """Returns the text of an answer, without its end token."""
    return engine.processor.tokenizer.decode(request.tokens[: -1 if request.finish == "end" else None])


def _sample(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sequence[Sampling], samples: range
) -> list[list[Request]]:
    groups = [
        [Request(prompt, settings, sample) for sample in samples]
        for prompt, settings in zip(prompts, sampling, strict=True)
    ]
    for _ in engine.run([request for group in groups for request in group]):
        pass
    return groups


def _reward(
    engine: Engine, prompts: Sequence[LoadedPrompt], requests: list[list[Request]], answers: int, rewards: Rewards
) -> Float64[np.ndarray, "rewards prompts answers"]:
    answered = [
        Answered(prompt.text, answer_text(engine, request), prompt.record, prompt.question, prompt.where)
        for prompt, group in zip(prompts, requests, strict=True)
        for request in group
    ]
    return rewards(answered).reshape(len(rewards.names), len(prompts), answers)
