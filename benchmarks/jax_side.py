"""Our side of benchmarks/train_step.py."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from safetensors.numpy import load_file

from conversion.leaves import flat, nested
from omnivinci_jax.mesh.mesh import make_mesh
from omnivinci_jax.mesh.rules import RULES, put_batch
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.losses import language_loss, token_losses
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.state import abstract_state, create_state, merge
from omnivinci_jax.train.step import make_train_step
from tests.parity.torch_weights import params_from_torch

Program = Callable[[], None]


class JaxSide:
    """A model in training, with the mesh and the step of `omnivinci train`; sets the mesh for the whole process."""

    def __init__(self, config: TrainConfig, batch: Batch, weights: Path):
        """The weights of the file that TorchSide wrote, or random ones where there is no file."""
        self.config, mesh = config, make_mesh(config.mesh)
        self.version = f"jax {jax.__version__}"
        contexts = ExitStack()
        contexts.enter_context(jax.set_mesh(mesh))
        contexts.enter_context(nn.logical_axis_rules(RULES))
        self.model = OmniVinci(
            config.model,
            dtype=jnp.dtype(config.dtype),
            tower_remat=config.tower_remat,
            decoder_remat=config.decoder_remat,
        )
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        _, shardings = abstract_state(self.model, self.optimizer, config.frozen, mesh)
        state = create_state(self.model, self.optimizer, config.frozen, config.seed, shardings)
        if weights.exists():
            leaves = flat(params_from_torch(load_file(weights), config.model))
            trainable, frozen = (
                nested({path: leaves.get(path, leaf) for path, leaf in flat(tree).items()})
                for tree in (state.trainable, state.frozen)
            )
            state = state.replace(
                trainable=jax.device_put(trainable, shardings.trainable),
                frozen=jax.device_put(frozen, shardings.frozen),
            )
        self.state, self.batch = state, put_batch(batch, mesh)
        self.step = make_train_step(self.model, self.optimizer, config.align_weight, shardings)

    def gradients(self, file: Path) -> tuple[float, dict[str, float]]:
        """The loss of the untouched weights, and how far each gradient is from the one that TorchSide left in `file`.

        A distance is the norm of a leaf's difference over the leaf's norm.
        """
        state = self.state
        loss, gradients = jax.jit(jax.value_and_grad(self._loss))(state.trainable, state.frozen, self.batch)
        theirs = flat(params_from_torch(load_file(file), self.config.model))
        distances = {
            path: float(jnp.linalg.norm(ours - theirs[path]) / jnp.linalg.norm(theirs[path]))
            for path, ours in flat(gradients).items()
        }
        return float(loss), distances

    def programs(self) -> dict[str, Program]:
        """Everything that is timed, by name; see benchmarks/train_step.py."""
        batch, params = self.batch, {"params": self.state.params}
        x = jax.jit(partial(self.model.apply, method=self.model.embed))(params, batch)
        positions, segment_ids = (a.reshape(-1, a.shape[-1]) for a in (batch.positions, batch.segment_ids))
        hidden = jax.jit(partial(self.model.apply, method=self.model.decode))(params, x, positions, segment_ids)
        hidden = hidden.reshape(*batch.tokens.shape, -1)
        forward = jax.jit(self._loss)
        programs = {
            "forward": lambda: forward(self.state.trainable, self.state.frozen, batch).block_until_ready(),
            "train step": self._train_step,
            "optimizer": self._update(),
        }
        for name, modules, method, *values in (
            ("vision tower", ("vision_tower", "mm_projector"), lambda model, batch: model.encode(batch)[0], batch),
            ("sound tower", ("sound_tower", "sound_mm_projector"), lambda model, batch: model.encode(batch)[1], batch),
            ("decoder", ("llm/layers", "llm/norm"), OmniVinci.decode, x, positions, segment_ids),
            ("head and loss", ("llm/lm_head", "llm/embed_tokens"), _head_and_loss, hidden, batch),
        ):
            programs[name], programs[f"{name}, backward"] = self._part(modules, method, *values)
        return programs

    def _loss(self, trainable: dict, frozen: dict, batch: Batch) -> jax.Array:
        params = {"params": merge(trainable, frozen)}
        return self.model.apply(params, self.model.apply(params, batch).hidden, batch, method=_head_and_loss)

    def _train_step(self) -> None:
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def _update(self) -> Program:
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
        self, modules: tuple[str, ...], method: Callable, value: jax.Array | Batch, *rest: jax.Array
    ) -> tuple[Program, Program]:
        """Forward, and with backward, of a part alone: to its own parameters, and to `value` if it is an activation."""

        @jax.jit
        def forward(own: dict, others: dict, value: jax.Array | Batch, *rest: jax.Array) -> jax.Array:
            return self.model.apply({"params": nested(own | others)}, value, *rest, method=method)

        @jax.jit
        def backward(
            cotangent: jax.Array, own: dict, others: dict, value: jax.Array | Batch, *rest: jax.Array
        ) -> tuple:
            inputs = (own,) if isinstance(value, Batch) else (own, value)
            return jax.vjp(lambda own, value=value: forward(own, others, value, *rest), *inputs)[1](cotangent)

        def run(function: Callable, *first: jax.Array) -> jax.Array:
            own = {path: leaf for path, leaf in flat(self.state.trainable).items() if path.startswith(modules)}
            others = {path: leaf for path, leaf in flat(self.state.params).items() if path not in own}
            return jax.block_until_ready(function(*first, own, others, value, *rest))

        return partial(run, forward), partial(run, backward, jnp.ones_like(run(forward)))


def _head_and_loss(model: OmniVinci, hidden: jax.Array, batch: Batch) -> jax.Array:
    return language_loss(token_losses(model.logits(hidden), batch.targets), batch.loss_weights)
