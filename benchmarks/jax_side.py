"""The JAX side of benchmarks/train_step.py."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from omnivinci_jax.mesh.mesh import make_mesh, on_mesh
from omnivinci_jax.mesh.rules import put_batch
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.planning.flops import FlopCounter, full_work
from omnivinci_jax.planning.hardware import chip_of
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.losses import score_slots, weighted_mean
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.state import abstract_state, create_state, make_model
from omnivinci_jax.train.step import make_gradient, make_train_step
from omnivinci_jax.train.supervised_loss import SupervisedLoss
from tests.parity.torch_weights import params_from_torch

Program = Callable[[], None]

flat, nested = partial(flatten_dict, sep="/"), partial(unflatten_dict, sep="/")


class ModelFlops(NamedTuple):
    """FLOPs of a forward pass and of a training step (planning/flops.py); `peak`: the chip's FLOP/s, if known."""

    forward: float
    step: float
    peak: float | None


class JaxSide:
    """A training run with the mesh and step of `omnivinci train`; sets the mesh for the whole process."""

    def __init__(self, config: TrainConfig, batch: Batch, folder: Path):
        """Loads the weights that TorchSide saved in `folder`; draws random ones if there are none."""
        mesh = make_mesh(config.mesh)
        self.version = f"jax {jax.__version__}"
        self.config, self.folder, self.device = config, folder, mesh.devices.flat[0]
        contexts = ExitStack()
        contexts.enter_context(on_mesh(mesh))
        self.model = make_model(config, self.device.platform)
        self.optimizer = make_optimizer(config.optimizer, config.steps, config.model)
        _, shardings = abstract_state(self.model, self.optimizer, config, mesh)
        state = create_state(self.model, self.optimizer, config, shardings)
        if (weights := folder / "weights.safetensors").exists():
            theirs = flat(params_from_torch(load_file(weights), config.model))
            trainable, frozen = (
                nested({path: jnp.asarray(theirs.get(path, leaf), leaf.dtype) for path, leaf in flat(tree).items()})
                for tree in (state.trainable, state.frozen)
            )
            state = jax.device_put(state.replace(trainable=trainable, frozen=frozen), shardings)
        self.state, self.batch = state, put_batch(batch, config.data.groups, mesh)
        self.loss_fn = SupervisedLoss(self.model, config.align_weight)
        self.step = make_train_step(self.loss_fn, self.optimizer, shardings)

    def flops(self) -> ModelFlops:
        """Counts the FLOPs of the full batch."""
        counter, work, chip = FlopCounter(self.config), full_work(self.config.data), chip_of(self.device.device_kind)
        return ModelFlops(counter.forward(work).total, counter.step(work).total, chip.flops if chip else None)

    def gradients(self) -> tuple[float, dict[str, float]]:
        """Returns the loss at the initial weights, and the distance of each gradient from TorchSide's.

        A distance is the norm of the difference divided by the norm of TorchSide's gradient.
        """
        gradient = jax.jit(make_gradient(self.loss_fn))
        gradients, metrics = gradient(self.state.trainable, self.state.frozen, self.batch)
        theirs = flat(params_from_torch(load_file(self.folder / "gradients.safetensors"), self.config.model))
        distances = {
            path: float(jnp.linalg.norm(ours - theirs[path]) / jnp.linalg.norm(theirs[path]))
            for path, ours in flat(gradients).items()
        }
        return float(metrics["loss"]), distances

    def programs(self) -> dict[str, Program]:
        """Returns the timed programs by name; see benchmarks/train_step.py."""
        batch, params = self.batch, self.state.params
        x = jax.jit(partial(self._apply, method=OmniVinci.embed))(params, batch)
        positions, segment_ids = (a.reshape(-1, a.shape[-1]) for a in (batch.positions, batch.segment_ids))
        decode = partial(self._apply, method=OmniVinci.decode)
        hidden = jax.jit(decode)(params, x, positions, segment_ids).reshape(*batch.tokens.shape, -1)
        forward = jax.jit(self._loss)
        programs = {
            "forward": lambda: forward(self.state.params, batch).block_until_ready(),
            "train step": self.train_step,
            "optimizer": self._optimizer(),
        }
        for name, modules, function, *values in (
            ("vision tower", ("vision_tower", "mm_projector"), self._vision, batch),
            ("sound tower", ("sound_tower", "sound_mm_projector"), self._sound, batch),
            ("decoder", ("llm/layers", "llm/norm"), decode, x, positions, segment_ids),
            ("head and loss", ("llm/lm_head", "llm/embed_tokens"), self._head_and_loss, hidden, batch),
        ):
            programs[name], programs[f"{name}, backward"] = self._part(modules, function, *values)
        return programs

    def _apply(self, params: dict, *values: object, method: Callable) -> object:
        return self.model.apply({"params": params}, *values, method=method)

    def _vision(self, params: dict, batch: Batch) -> jax.Array:
        return self._apply(params, batch, method=OmniVinci.encode)[0]

    def _sound(self, params: dict, batch: Batch) -> jax.Array:
        return self._apply(params, batch, method=OmniVinci.encode)[1]

    def _head_and_loss(self, params: dict, hidden: jax.Array, batch: Batch) -> jax.Array:
        losses, _ = score_slots(self.model, params, hidden, batch.targets)
        return weighted_mean(losses, batch.loss_weights)

    def _loss(self, params: dict, batch: Batch) -> jax.Array:
        return self._head_and_loss(params, self.model.apply({"params": params}, batch).hidden, batch)

    def train_step(self) -> None:
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def _optimizer(self) -> Program:
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), self.state.trainable)

        @partial(jax.jit, donate_argnums=(1, 2))
        def update(gradients: dict, opt_state: optax.OptState, trainable: dict) -> tuple[optax.OptState, dict]:
            updates, opt_state = self.optimizer.update(gradients, opt_state, trainable)
            return opt_state, optax.apply_updates(trainable, updates)

        def run() -> None:
            opt_state, trainable = update(gradients, self.state.opt_state, self.state.trainable)
            self.state = jax.block_until_ready(self.state.replace(opt_state=opt_state, trainable=trainable))

        return run

    def _part(
        self, modules: tuple[str, ...], function: Callable, value: jax.Array | Batch, *rest: jax.Array
    ) -> tuple[Program, Program]:
        """Returns two programs of one part: its forward pass, and its forward and backward pass.

        The backward pass differentiates by the part's parameters, and by `value` if that is an activation.
        """

        def forward(params: dict, others: dict, value: jax.Array | Batch, *rest: jax.Array) -> jax.Array:
            return function(nested(params | others), value, *rest)

        def backward(
            cotangent: jax.Array, params: dict, others: dict, value: jax.Array | Batch, *rest: jax.Array
        ) -> tuple:
            inputs = (params,) if isinstance(value, Batch) else (params, value)
            return jax.vjp(lambda params, value=value: forward(params, others, value, *rest), *inputs)[1](cotangent)

        def run(compiled: Callable, *cotangents: jax.Array) -> jax.Array:
            params = {path: leaf for path, leaf in flat(self.state.trainable).items() if path.startswith(modules)}
            others = {path: leaf for path, leaf in flat(self.state.params).items() if path not in params}
            return jax.block_until_ready(compiled(*cotangents, params, others, value, *rest))

        forward_program = partial(run, jax.jit(forward))
        return forward_program, partial(run, jax.jit(backward), jnp.ones_like(forward_program()))
