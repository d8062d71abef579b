"""What a training step carries on: two trees of parameters, the optimizer's state and the random key."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct, traverse_util
from jax import Array
from jax.sharding import AbstractMesh, Mesh

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.mesh.rules import parameter_shardings, replicated
from omnivinci_jax.model_dir import boxed_params
from omnivinci_jax.models.attention_kernels import choose_implementation
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.settings import TrainConfig


@struct.dataclass
class TrainState:
    """`trainable` has gradients, float32 values and optimizer state; `frozen` has none, and the type computed in."""

    step: Array
    trainable: Any
    frozen: Any
    opt_state: Any
    key: Array

    @property
    def params(self) -> dict:
        """Both trees as the model's one."""
        return merge(self.trainable, self.frozen)


def make_model(config: TrainConfig, platform: str) -> OmniVinci:
    """The model as a training run computes it on a platform (cpu, gpu or tpu)."""
    return OmniVinci(
        config.model,
        dtype=jnp.dtype(config.dtype),
        tower_remat=config.tower_remat,
        decoder_remat=config.decoder_remat,
        attention=choose_implementation(config.attention, platform),
    )


def split(params: dict, frozen: tuple[str, ...]) -> tuple[dict, dict]:
    """(trainable, frozen) by regular expressions over paths such as "llm/layers/mlp/up_proj/kernel".

    Raises:
        ConfigError: an expression that matches nothing, or that leaves nothing to train.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for pattern in frozen:
        if not any(re.fullmatch(pattern, path) for path in flat):
            raise ConfigError(f"config.frozen: {pattern!r} matches no parameter; paths look like {next(iter(flat))}")
    held = {path: leaf for path, leaf in flat.items() if any(re.fullmatch(pattern, path) for pattern in frozen)}
    if len(held) == len(flat):
        raise ConfigError(f"config.frozen is {frozen}: nothing is left to train")
    free = {path: leaf for path, leaf in flat.items() if path not in held}
    return traverse_util.unflatten_dict(free, sep="/"), traverse_util.unflatten_dict(held, sep="/")


def merge(trainable: dict, frozen: dict) -> dict:
    """The inverse of `split`."""
    flat = {**traverse_util.flatten_dict(trainable), **traverse_util.flatten_dict(frozen)}
    return traverse_util.unflatten_dict(flat)


def abstract_state(
    model: OmniVinci, optimizer: optax.GradientTransformation, frozen: tuple[str, ...], mesh: Mesh | AbstractMesh
) -> tuple[TrainState, TrainState]:
    """Shapes and types of a state that is not created, and its shardings.

    Optimizer state is sharded as the parameter whose path it ends with; everything else is replicated.

    Raises:
        ConfigError: a parameter that the mesh does not divide.
    """
    key = jax.random.PRNGKey(0)
    boxed = jax.eval_shape(partial(boxed_params, model), key)
    by_path = traverse_util.flatten_dict(parameter_shardings(boxed, mesh), sep="/")

    def sharding(path, leaf) -> jax.sharding.Sharding:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        for start in range(len(names)):
            found = by_path.get("/".join(names[start:]))
            if found is not None and len(found.spec) <= leaf.ndim:
                return found
        return replicated(mesh)

    shapes = jax.eval_shape(_initializer(model, optimizer, frozen), key)
    return shapes, jax.tree_util.tree_map_with_path(sharding, shapes)


def create_state(
    model: OmniVinci,
    optimizer: optax.GradientTransformation,
    frozen: tuple[str, ...],
    seed: int,
    shardings: TrainState,
) -> TrainState:
    """The initial state, every array created in its shards."""
    return jax.jit(_initializer(model, optimizer, frozen), out_shardings=shardings)(jax.random.PRNGKey(seed))


def _initializer(
    model: OmniVinci, optimizer: optax.GradientTransformation, frozen: tuple[str, ...]
) -> Callable[[Array], TrainState]:
    def init(key: Array) -> TrainState:
        init_key, key = jax.random.split(key)
        trainable, held = split(nn.meta.unbox(boxed_params(model, init_key)), frozen)
        held = jax.tree.map(lambda leaf: leaf.astype(model.dtype), held)
        return TrainState(jnp.zeros((), jnp.int32), trainable, held, optimizer.init(trainable), key)

    return init
