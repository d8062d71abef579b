"""The trainer with another loss, model and batches.

The batches depend on the current parameters and are used for two updates each, like rollouts.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from omnivinci_jax.mesh.mesh import make_mesh
from omnivinci_jax.mesh.rules import replicated
from omnivinci_jax.settings import MeshConfig
from omnivinci_jax.train.checkpoints import Checkpoints
from omnivinci_jax.train.hooks import Evaluate, Log, NonfiniteGuard, Save
from omnivinci_jax.train.metrics import Meter, MetricsLog, Work, read_metrics
from omnivinci_jax.train.state import TrainState
from omnivinci_jax.train.step import Terms, make_gradient, make_train_step
from omnivinci_jax.train.trainer import Hook, Progress, Trainer

STEPS = 12


class Points(NamedTuple):
    """A batch: x [G, N, 3], y [G, N] and the weight of each point [G, N]."""

    x: jax.Array
    y: jax.Array
    weights: jax.Array


def predict(params: dict, points: Points) -> jax.Array:
    return jnp.tanh(points.x @ params["kernel"]) @ params["head"] + params["bias"]


def mean_loss(params: dict, points: Points) -> tuple[jax.Array, dict]:
    """A mean over points, for which a plain function is enough."""
    error = predict(params, points) - points.y
    return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error)), "points": jnp.array(error.size)}


class WeightedLoss:
    """A weighted mean; a microbatch alone does not know the total weight."""

    def __call__(self, params: dict, points: Points) -> tuple[jax.Array, dict]:
        return self._loss(params, points, points.weights.sum())

    def split(self, params: dict, microbatches: Points) -> Terms:
        total = microbatches.weights.sum()
        return Terms(lambda params, points: self._loss(params, points, total), microbatches, {"weight": total})

    def _loss(self, params: dict, points: Points, total: jax.Array) -> tuple[jax.Array, dict]:
        error = predict(params, points) - points.y
        return jnp.sum(points.weights * error**2) / total, {"points": jnp.array(error.size)}


OPTIMIZER = optax.adam(0.05)


def new_state() -> TrainState:
    keys = jax.random.split(jax.random.key(0), 2)
    frozen = {"kernel": jax.random.normal(keys[0], (3, 8))}
    trainable = {"head": jax.random.normal(keys[1], (8,)), "bias": jnp.zeros(())}
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, OPTIMIZER.init(trainable))


def draw(params: dict, seed: int) -> Points:
    """Draws points that depend on the parameters."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(4, 6, 3)) + float(params["bias"])
    return Points(jnp.asarray(x, jnp.float32), jnp.sin(x).sum(-1), jnp.asarray(random.uniform(0.1, 2, (4, 6))))


@pytest.mark.parametrize("loss_fn", [mean_loss, WeightedLoss()])
def test_microbatches_give_the_gradient_and_metrics_of_the_whole_batch(loss_fn):
    state, points = new_state(), draw(new_state().params, 0)
    gradient, metrics = jax.jit(make_gradient(loss_fn))(state.trainable, state.frozen, points)
    for count in (2, 4):
        accumulated, found = jax.jit(make_gradient(loss_fn, count))(state.trainable, state.frozen, points)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), accumulated, gradient)
        for name in metrics:
            np.testing.assert_allclose(found[name], metrics[name], rtol=1e-5)
    assert int(metrics["points"]) == 24


@dataclass
class Fit:
    """An evaluation; `overall` is 1 if there is no error."""

    overall: float

    @property
    def metrics(self) -> dict[str, float]:
        return {"fit": self.overall}


class Recorder(Hook):
    """Records when metrics arrive, and stops after step `stop_at`."""

    def __init__(self, stop_at: int = 0):
        self.stop_at, self.consumed, self.late = stop_at, [], 0

    def on_metrics(self, step, metrics):
        assert isinstance(metrics["loss"], np.ndarray)
        self.consumed.append(step)

    def after_step(self, trainer):
        self.late = max(self.late, trainer.progress.step - len(self.consumed))
        if trainer.progress.step == self.stop_at:
            trainer.stop()


def train(folder: Path, loss_fn, microbatches: int = 2, stop_at: int = 0) -> tuple[Trainer, Recorder, list[float]]:
    """Trains, resuming any run in `folder`; also returns the scores of the kept states."""
    mesh, state = make_mesh(MeshConfig()), new_state()
    shapes, shardings = jax.eval_shape(new_state), jax.tree.map(lambda _: replicated(mesh), state)
    with jax.set_mesh(mesh):
        checkpoints = Checkpoints(epath.Path(folder) / "checkpoints")
        state, saved = checkpoints.restore_or_create(shapes, shardings, new_state, lambda: new_state().frozen)
        progress = Progress(**(saved or {}))
        recorder, metrics_log = Recorder(stop_at), MetricsLog(folder, progress.step)
        meter = Meter(lambda step: Work(1, 1, 0, 0, 0), lambda work: {"rate": float(work.slots)})
        held_out, kept = draw(new_state().params, 99), []

        def evaluate(params: dict) -> Fit:
            return Fit(1 - float(mean_loss(params, held_out)[0]))

        def keep(state: TrainState) -> None:
            kept.append(evaluate(state.params).overall)

        hooks = [
            recorder,
            NonfiniteGuard(progress, 0, str),
            meter,
            Log(metrics_log, optax.constant_schedule(0.05), every=3, steps=range(progress.step, STEPS)),
            Evaluate(evaluate, keep, metrics_log, meter, every=4),
            Save(checkpoints, meter, every=4, prepare=lambda: None),
        ]
        step = make_train_step(loss_fn, OPTIMIZER, shardings, microbatches=microbatches)
        trainer = Trainer(state, step, progress, hooks)

        def rollouts():
            while True:
                points = draw(trainer.state.params, progress.step)
                yield from (points, points)

        trainer.run(rollouts(), lambda trainer: progress.step >= STEPS)
        checkpoints.wait()
        metrics_log.close()
    return trainer, recorder, kept


@pytest.mark.parametrize("loss_fn", [mean_loss, WeightedLoss()])
def test_it_trains_with_hooks_and_resumes_bit_for_bit(loss_fn, tmp_path):
    (tmp_path / "whole").mkdir()
    whole, recorder, kept = train(tmp_path / "whole", loss_fn)
    assert recorder.consumed == list(range(1, STEPS + 1))
    assert recorder.late == 1  # the loop never waits for the step that has just started
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [(line["step"], line["split"]) for line in lines] == [
        (3, "train"), (4, "val"), (6, "train"), (8, "val"), (9, "train"), (12, "train"), (12, "val")
    ]  # fmt: skip
    assert lines[-2]["loss"] < lines[0]["loss"] / 2  # it learns
    assert whole.progress.best == max(line["fit"] for line in lines if line["split"] == "val") == kept[-1]

    (tmp_path / "parts").mkdir()
    first, _, _ = train(tmp_path / "parts", loss_fn, stop_at=6)  # stopping saves a checkpoint
    assert first.progress.step == 6 and not first.is_last
    second, recorder, _ = train(tmp_path / "parts", loss_fn)
    assert recorder.consumed == list(range(7, STEPS + 1))
    jax.tree.map(np.testing.assert_array_equal, second.state, whole.state)
    assert read_metrics(tmp_path / "parts" / "metrics.jsonl") == lines
    again, recorder, _ = train(tmp_path / "parts", loss_fn)  # nothing is left to do
    assert recorder.consumed == [] and again.is_last


def test_accumulation_trains_like_the_whole_batch(tmp_path):
    for count in (1, 4):
        (tmp_path / str(count)).mkdir()
    whole, accumulated = (train(tmp_path / str(count), WeightedLoss(), count)[0].state for count in (1, 4))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), accumulated, whole)
    jax.tree.map(np.testing.assert_array_equal, whole.frozen, new_state().frozen)
