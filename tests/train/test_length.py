"""Runs that stop after a number of conversations or tokens: counts, expected steps and resuming."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from omnivinci_jax.data.loader import Plan
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.run import train
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, TrainConfig
from omnivinci_jax.train import supervised
from omnivinci_jax.train.length import Length
from omnivinci_jax.train.metrics import read_metrics
from omnivinci_jax.train.samples import DataProgress, Samples
from omnivinci_jax.train.state import TrainState
from omnivinci_jax.train.supervised_loss import SupervisedLoss, sample_starts
from omnivinci_jax.train.trainer import Hook, Trainer
from tests.data.test_mixture import mixture_of
from tests.tiny import tiny_settings

CAPACITY = Capacity(rows=2, slots=64, tiles=1, windows=1, clips=1)


def plan_of(count: int):
    """A plan over conversations of 8 to 40 slots, and their sizes."""
    mixture = mixture_of({"a": count}, {"a": 1})
    sizes = np.full((count, 4), (20, 0, 0, 0))
    sizes[:, 0] = np.random.default_rng(0).integers(8, 41, count)
    mixture.__dict__["sizes"] = sizes  # a cached property
    return Plan(mixture, CAPACITY, seed=3), sizes


@pytest.mark.parametrize("unit", ["conversations", "tokens"])
def test_the_expected_steps_match_the_plan(unit):
    plan, sizes = plan_of(600)
    counted, steps = 0, []
    for step in range(300):
        samples = [sample for group in (2 * step, 2 * step + 1) for row in plan[group] for sample in row]
        counted += len(samples) if unit == "conversations" else sizes[samples, 0].sum()
        steps.append(counted)

    def expected(target: int) -> int:
        return Length(**{"steps": 0, "conversations": 0, "tokens": 0, unit: int(target)}).expected_steps(plan, sizes, 2)

    for step in (0, 9, 200):
        assert expected(steps[step]) == step + 1 and expected(steps[step] + 1) == step + 2
    # Beyond the first blocks, the estimate is within 1 %.
    assert expected(1000 * steps[-1]) == pytest.approx(1000 * len(steps), rel=0.01)
    assert Length(7, 0, 0).expected_steps(plan, sizes, 2) == 7


def test_unread_samples_do_not_count_and_only_the_last_steps_wait_for_the_device():
    """Each step reads 4 of 5 planned samples: 41 take 11 steps, and from step 10 on, 5 more could be enough."""

    class Read(Hook):
        waited = ()

        def on_metrics(self, step, metrics):
            progress.read += int(metrics["samples"])

        def after_step(self, trainer):
            self.waited += () if trainer.pending else (trainer.progress.step,)

    class FiveSamples(Samples):
        def __init__(self):
            pass

        def sizes(self, step):
            return np.zeros((5, 4), int)

    def train_step(state, batch):
        return state, {"samples": np.array(4)}

    progress, read = DataProgress(), Read()
    trainer = Trainer(TrainState(0, {}, {}, ()), train_step, progress, [read])
    trainer.run(range(100), partial(Length(0, 41, 0).is_done, samples=FiveSamples()))
    assert trainer.is_last and progress.step == 11 and progress.read == 44
    assert read.waited == (10, 11)


class NormLoss(SupervisedLoss):
    """Counts like the supervised loss, but only trains the last norm towards 0: the model would be slow to compile."""

    def _loss(self, params, batch, weight, clip_loss=None):
        samples = sample_starts(batch.segment_ids)
        loss = jnp.mean(jnp.square(params["llm"]["norm"]["scale"])) + jnp.sum(samples) / 100
        per_source = jnp.sum(samples)[None]
        metrics = {"tokens": jnp.sum(batch.segment_ids > 0), "samples": per_source.sum(), "source_samples": per_source}
        return loss, metrics | {"source_losses": loss[None], "source_weights": jnp.ones(1)}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    """A run of the tiny model on conversations of different lengths."""
    folder = tmp_path_factory.mktemp("text")
    lines = []
    for number in range(40):
        words = " ".join(["red"] * (1 + number % 7))
        messages = [{"role": "user", "content": f"{number} {words}"}, {"role": "assistant", "content": "yes"}]
        lines.append(json.dumps({"messages": messages}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    settings = tiny_settings()
    data = DataConfig(
        train=str(folder / "train.jsonl"),
        groups=1,
        capacity=Capacity(rows=2, slots=96, tiles=1, windows=1, clips=1),
        workers=0,
        cache=str(folder / "cache"),
    )
    return dataclasses.replace(
        settings, data=data, align_weight=0.0, frozen=(r"(?!llm/norm/).*",), checkpoint_every=2, log_every=1
    )


def counted(workdir: Path, step: int) -> dict:
    return json.loads((workdir / "checkpoints" / str(step) / "run" / "metadata").read_text())


@pytest.mark.parametrize(
    ("key", "metric", "counter", "target"),
    [("stop_after_conversations", "samples", "read", 31), ("stop_after_tokens", "tokens", "tokens", 1000)],
)
def test_a_run_stops_at_its_length_resumed_or_not(key, metric, counter, target, config, tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "SupervisedLoss", NormLoss)
    config = dataclasses.replace(config, steps=0, **{key: target})
    train(config, epath.Path(tmp_path / "whole"))
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    total = np.cumsum([line[metric] for line in lines])
    assert total[-2] < target <= total[-1] and len(lines) >= 5
    last = len(lines)
    assert counted(tmp_path / "whole", last)[counter] == total[-1]
    # The schedule ends with the run: every sample can be read, so the expected number of steps is exact.
    rates = [line["learning_rate"] for line in lines]
    warmup, steps = 1, np.arange(last)
    cosine = config.optimizer.learning_rate * (1 + np.cos(np.pi * (steps - warmup) / (last - warmup))) / 2
    np.testing.assert_allclose(rates, np.where(steps < warmup, 0, cosine), rtol=1e-5)

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / str(last))
    train(config, epath.Path(tmp_path / "resumed"))
    again = read_metrics(tmp_path / "resumed" / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in again] == [(line["step"], line["loss"]) for line in lines]
    assert counted(tmp_path / "resumed", last)[counter] == total[-1]


@pytest.mark.parametrize(
    "lengths",
    [{"steps": 0}, {"stop_after_tokens": 5}, {"steps": 0, "stop_after_tokens": 5, "stop_after_conversations": 5}],
)
def test_a_run_has_one_length(lengths):
    with pytest.raises(ConfigError, match="exactly one must be above 0: the length of the run"):
        TrainConfig(**lengths)
