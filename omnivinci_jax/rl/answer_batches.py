"""The batches of a GRPO run: each step samples answers with the current policy, and rewards and packs them."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from omnivinci_jax import strict_json
from omnivinci_jax.data.mixture import Mixture
from omnivinci_jax.errors import DataError, UserError
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Sampling
from omnivinci_jax.mesh.rules import put_batch
from omnivinci_jax.rl.advantages import all_equal, group_advantages, token_weights
from omnivinci_jax.rl.answer_rows import at_tokens, pack_answers
from omnivinci_jax.rl.encoders import encode_prompts, encoded_media
from omnivinci_jax.rl.loss import AnswerBatch
from omnivinci_jax.rl.prompts import LoadedPrompt, load_prompt, prompt_order
from omnivinci_jax.rl.rewards import Rewards
from omnivinci_jax.rl.rollouts import Rollout, rollout
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.sequence.references import shown
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.metrics import Work, read_metrics
from omnivinci_jax.train.samples import DataProgress
from omnivinci_jax.train.state import TrainState
from omnivinci_jax.train.trainer import Hook, Trainer

log = logging.getLogger("omnivinci")

# Maps (state, rows) to the log-probability of each slot's target.
Score = Callable[[TrainState, Batch], jax.Array]


class Scores(NamedTuple):
    """Log-probabilities that the loss compares with; None where it does not need them."""

    old: Score | None
    reference: Score | None


class AnswerBatches(Hook):
    """Makes the batch of each step, and measures the rollouts.

    Args:
        config: of the run.
        prompts: the training prompts.
        engine: samples answers.
        rewards: rewards them.
        scores: what the loss needs.
        progress: of the run.
        folder: where the answers to the first prompt of each step, and the samples that cannot be read, are listed.
        mesh: of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        prompts: Mixture,
        engine: Engine,
        rewards: Rewards,
        scores: Scores,
        progress: DataProgress,
        folder: Path,
        mesh: Mesh,
    ):
        self._config, self._prompts, self._engine, self._rewards = config, prompts, engine, rewards
        self._scores, self._progress, self._mesh = scores, progress, mesh
        self._answers_file, self._skipped_file = folder / "answers.jsonl", folder / "skipped.txt"
        kept = [line for line in read_metrics(self._answers_file) if line["step"] <= progress.step]
        self._answers_file.write_text("".join(strict_json.dumps(line) + "\n" for line in kept))
        self._measured: dict[str, list[float]] = defaultdict(list)
        self._samples: dict[int, list[int]] = {}
        self._work = Work(0, 0, 0, 0, 0)
        self._warned = False

    def batches(self, trainer: Trainer, save: Callable[[Trainer], None]) -> Generator[AnswerBatch]:
        """Yields the batches of the steps after `trainer.progress.step`.

        Calls `save` before it raises an error of the rollouts, so that no finished step is lost.

        Raises:
            UserError: a reward fails, no answer has the format at the start, or too many prompts cannot be read.
        """
        step, count = self._progress.step, self._config.grpo.prompts
        order = prompt_order(self._prompts, self._config.seed, step * count)
        threads = ThreadPoolExecutor(max(self._config.data.workers, 1))

        def load(sample: int) -> "Future[LoadedPrompt | str]":
            return threads.submit(load_prompt, self._prompts, sample, self._engine.processor)

        def next_step() -> list[tuple[int, "Future[LoadedPrompt | str]"]]:
            return [(sample, load(sample)) for sample in islice(order, count)]

        try:
            coming = next_step()
            while True:
                step, loading, coming = step + 1, coming, next_step()
                self._samples = {step - 1: self._samples.get(step - 1, []), step: [sample for sample, _ in loading]}
                try:
                    batch = self._batch(step, [future.result() for _, future in loading], trainer.state)
                except UserError:
                    if step > 1:
                        save(trainer)
                    raise
                yield batch
        finally:
            threads.shutdown(cancel_futures=True)

    def work(self, _step: int) -> Work:
        """Returns the work of the newest step's updates."""
        return self._work

    def where(self, step: int) -> str:
        """Describes a step and where its prompts come from, for messages."""
        return f"step {step}, " + ", ".join(map(self._prompts.where, sorted(self._samples.get(step, []))))

    def values(self) -> Mapping[str, float]:
        """Returns the means of what was measured since the last call."""
        means = {name: float(np.mean(values)) for name, values in self._measured.items()}
        self._measured.clear()
        return means

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Warns, once, if the log-probabilities of sampler and trainer differ."""
        bound, found = self._config.grpo.max_sampler_difference, float(metrics["sampler_difference"])
        if found > bound and not self._warned:
            self._warned = True
            log.warning(
                "step %d: log-probabilities of sampler and trainer differ by %.3g on average, more than "
                "config.grpo.max_sampler_difference = %g; config.dtype=float32 shows whether rounding is the cause",
                *(step, found, bound),
            )

    def _batch(self, step: int, loaded: list[LoadedPrompt | str], state: TrainState) -> AnswerBatch:
        config, grpo, began = self._config, self._config.grpo, time.monotonic()
        prompts = [self._read(prompt, sample) for prompt, sample in zip(loaded, self._samples[step], strict=True)]
        media = encoded_media(self._engine.model, state.trainable)
        prompts = encode_prompts(self._engine.model, state.params, prompts, media, self._mesh.size)
        present = [n for n, prompt in enumerate(prompts) if prompt]
        self._engine.update(state.params)
        found = rollout(
            self._engine,
            [prompt for prompt in prompts if prompt],
            [_sampling(config, step, n) for n in present],
            grpo.answers,
            self._rewards,
            grpo.resamples,
        )
        self._engine.release()  # memory for the updates
        self._measure(found, time.monotonic() - began)
        if step == 1:
            self._check_format(found)
        self._write(step, found)

        answers: list[list[list[int]]] = [[] for _ in prompts]
        for n, group in zip(present, found.requests, strict=True):
            answers[n] = [request.tokens for request in group]
        rows, spans = pack_answers(prompts, answers, config.model, config.data.capacity, config.data.groups, media)
        self._work = _work(prompts, answers, max(config.data.groups // grpo.prompts, 1), grpo.updates)
        self._progress.tokens += int((rows.segment_ids > 0).sum())

        shape, position = rows.tokens.shape, {n: index for index, n in enumerate(present)}
        finished = np.array([[request.finish == "end" for request in group] for group in found.requests], bool)
        lengths = np.array([[len(request.tokens) for request in group] for group in found.requests], int)
        kept = finished if grpo.mask_truncated else np.ones_like(finished)
        advantages = group_advantages(found.total, grpo.variant)
        weights = token_weights(lengths.ravel(), kept.ravel(), grpo.variant, grpo.max_new_tokens).reshape(kept.shape)
        logprobs = [[request.logprobs for request in group] for group in found.requests]
        weights, advantages, logprobs = (
            at_tokens(shape, spans, lambda n, answer, values=values: values[position[n]][answer])
            for values in (weights, advantages, logprobs)
        )
        rows = put_batch(rows._replace(loss_weights=weights), config.data.groups, self._mesh)
        sharding = rows.loss_weights.sharding
        old, reference = (score(state, rows) if score else None for score in self._scores)
        return AnswerBatch(
            rows, jax.device_put(advantages, sharding), jax.device_put(logprobs, sharding), old, reference
        )

    def _read(self, prompt: LoadedPrompt | str, sample: int) -> LoadedPrompt | None:
        """Counts a prompt; returns None for one that could not be read. Raises DataError if these are too many."""
        progress, limit = self._progress, self._config.data.max_skipped
        if isinstance(prompt, LoadedPrompt):
            progress.read += 1
            return prompt
        log.warning("skipped: %s", prompt)
        with open(self._skipped_file, "a", errors="backslashreplace") as file:
            file.write(prompt + "\n")
        source = self._prompts.sources[int(self._prompts.source_of(sample))].name
        progress.skipped[source] = progress.skipped.get(source, 0) + 1
        skipped = sum(progress.skipped.values())
        # The fraction is of at least 100 samples: otherwise one bad file at the start would end the run.
        if skipped > limit * max(progress.read + skipped, 100):
            raise DataError(
                f"{skipped} of {progress.read + skipped} prompts could not be read, more than data.max_skipped = "
                f"{limit:g} allows: {self._skipped_file} lists them; the last one is {prompt}"
            )
        return None

    def _measure(self, found: Rollout, seconds: float) -> None:
        requests = [request for group in found.requests for request in group]
        if not requests:
            return
        tokens = [len(request.tokens) for request in requests]
        measured = {
            "reward": found.total.mean(),
            **{
                f"{name}_reward": values.mean() for name, values in zip(self._rewards.names, found.rewards, strict=True)
            },
            "zero_variance": all_equal(found.total).mean(),
            "length": np.mean(tokens),
            "truncated": np.mean([request.finish == "length" for request in requests]),
            "rollout_seconds": seconds,
            "rollout_tokens_per_second": sum(tokens) / seconds,
        }
        for name, value in measured.items():
            self._measured[name].append(float(value))

    def _check_format(self, found: Rollout) -> None:
        """Raises UserError if the model does not know the format, since no reward can teach it then."""
        for reward, values in zip(self._config.grpo.rewards, found.rewards, strict=True):
            if reward.name == "format" and not reward.function and reward.weight and values.size and not values.any():
                raise UserError(
                    f"the format reward of all {values.size} first answers is 0: none is <think>...</think><answer>..."
                    f"</answer>; {found.prompts[0].where} was answered {shown(found.texts[0][0])}; train the model on "
                    "the format first, or ask for it in config.grpo.instruction"
                )

    def _write(self, step: int, found: Rollout) -> None:
        """Writes the answers to the first prompt of a step."""
        if not found.prompts:
            return
        prompt = found.prompts[0]
        answers = [
            {"text": text, **dict(zip(self._rewards.names, found.rewards[:, 0, n].tolist(), strict=True))}
            for n, text in enumerate(found.texts[0])
        ]
        line = {"step": step, "where": prompt.where, "prompt": prompt.text, "answer": prompt.question.answer}
        with open(self._answers_file, "a") as file:
            file.write(strict_json.dumps(line | {"answers": answers}) + "\n")


def _sampling(config: TrainConfig, step: int, prompt: int) -> Sampling:
    """Returns the sampling of a prompt of a step; its seed depends on the run's seed, the step and the prompt."""
    grpo, (seed,) = config.grpo, np.random.SeedSequence((config.seed, step, prompt)).generate_state(1)
    return Sampling(temperature=grpo.temperature, top_p=grpo.top_p, seed=int(seed), max_new_tokens=grpo.max_new_tokens)


def _work(prompts: list[LoadedPrompt | None], answers: list[list[list[int]]], copies: int, updates: int) -> Work:
    """Returns the work of `updates` updates, in which `copies` groups have the media of a prompt."""
    found = [(len(prompt.row) + len(tokens)) for n, prompt in enumerate(prompts) if prompt for tokens in answers[n]]
    slots = np.array(found, int)
    tiles = copies * sum(prompt.row.num_tiles for prompt in prompts if prompt)
    windows = copies * sum(prompt.row.num_windows for prompt in prompts if prompt)
    clips = copies * sum(len(prompt.row.clip_source) for prompt in prompts if prompt)
    return Work(*(int(value) * updates for value in (slots.sum(), np.square(slots).sum(), tiles, windows, clips)))
