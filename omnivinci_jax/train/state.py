"""The state of a training run: trainable parameters, frozen parameters and the optimizer's state.

Checkpoints do not contain the frozen parameters. A resumed run creates them again as at the start: it loads them from
the directory that it started from, or draws them from the seed.
"""

import re
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax import linen as nn
from flax import struct, traverse_util
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.mesh.rules import parameter_shardings, replicated
from omnivinci_jax.model_dir import load_params, quantized_sharding, stored_params
from omnivinci_jax.models.attention_kernels import choose_implementation
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.initialization import (
    abstract_boxes,
    abstract_params,
    boxed_params,
    parameter_roles,
    unbox_abstract,
)
from omnivinci_jax.models.lora import add_adapters, without_adapters
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.parameters import Role
from omnivinci_jax.models.quantized import is_quantized
from omnivinci_jax.models.weights import Weight, cast
from omnivinci_jax.settings import LoraConfig, TrainConfig
from omnivinci_jax.train.start import only_modules


@struct.dataclass
class TrainState:
    """The state, or a tree of its shapes or shardings: hence no types.

    `trainable` is float32 and has optimizer state; `frozen` has the compute dtype and no such state.
    """

    step: Any
    trainable: Any
    frozen: Any
    opt_state: Any

    @property
    def params(self) -> dict:
        """All parameters in one tree, as the model expects them."""
        return merge(self.trainable, self.frozen)


def make_model(config: TrainConfig, platform: str) -> OmniVinci:
    """Returns the model with a training run's compute settings for a platform (cpu, gpu or tpu)."""
    compute = Compute(
        dtype=jnp.dtype(config.dtype),
        tower_remat=config.tower_remat,
        decoder_remat=config.decoder_remat,
        attention=choose_implementation(config.attention, platform),
    )
    return OmniVinci(config.model, compute)


def initial_params(config: TrainConfig, key: Array) -> dict:
    """Returns new boxed parameters with logical axes, including any adapters. Call it inside a traced function.

    Raises:
        ConfigError: an adapter target that matches nothing.
    """
    return _with_adapters(boxed_params(config.model, key), config.lora, key)


def abstract_initial(config: TrainConfig) -> dict:
    """Returns the shapes and dtypes of `initial_params`, and raises the same errors."""
    add = partial(_with_adapters, lora=config.lora)
    return jax.eval_shape(add, abstract_boxes(config.model), key=jax.random.PRNGKey(0))


def _with_adapters(boxed: dict, lora: LoraConfig, key: Array) -> dict:
    return add_adapters(boxed, lora.rank, lora.alpha, lora.targets, key) if lora.rank else boxed


def split(params: dict, frozen: tuple[str, ...]) -> tuple[dict, dict]:
    """Splits parameters into (trainable, frozen); full matches of the regular expressions `frozen` are frozen.

    The expressions match paths such as "llm/layers/mlp/up_proj/kernel".

    Raises:
        ConfigError: an expression matches nothing, or nothing is left to train.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for pattern in frozen:
        if not any(re.fullmatch(pattern, path) for path in flat):
            raise ConfigError(f"config.frozen: {pattern!r} matches no parameter; paths look like {next(iter(flat))}")
    matched = {path for path in flat if any(re.fullmatch(pattern, path) for pattern in frozen)}
    if len(matched) == len(flat):
        raise ConfigError(f"config.frozen is {frozen}: nothing is left to train")
    return _partition(flat, matched)


def split_trainable(params: dict, config: TrainConfig) -> tuple[dict, dict]:
    """Splits parameters into (trainable, frozen): only adapters train if there are any, else all but `config.frozen`.

    Raises:
        ConfigError: see `split`.
    """
    if not config.lora.rank:
        return split(params, config.frozen)
    roles = typing.cast("dict[str, Role]", traverse_util.flatten_dict(parameter_roles(config.model, params), sep="/"))
    frozen = {path for path, role in roles.items() if not role.adapter}
    return _partition(traverse_util.flatten_dict(params, sep="/"), frozen)


def _partition(flat: dict[str, Any], frozen: set[str]) -> tuple[dict, dict]:
    trainable = {path: leaf for path, leaf in flat.items() if path not in frozen}
    rest = {path: leaf for path, leaf in flat.items() if path in frozen}
    return traverse_util.unflatten_dict(trainable, sep="/"), traverse_util.unflatten_dict(rest, sep="/")


def merge(first: dict, second: dict) -> dict:
    """Merges two trees, the inverse of `split`; where both have a leaf, that of `second` wins."""
    flat = {**traverse_util.flatten_dict(first), **traverse_util.flatten_dict(second)}
    return traverse_util.unflatten_dict(flat)


def abstract_state(
    model: OmniVinci,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh | AbstractMesh,
    start: epath.Path | None = None,
) -> tuple[TrainState, TrainState]:
    """Returns the shapes and the shardings of a state, without creating it.

    An array of the optimizer is sharded like the parameter whose path ends its own path; all others are replicated.
    `start` comes from `find_start`; its quantized parameters stay quantized.

    Raises:
        ConfigError: the mesh does not divide a parameter, an expression matches nothing, or a quantized parameter
            would train.
    """
    boxed = abstract_initial(config)
    layout = traverse_util.flatten_dict(parameter_shardings(boxed, mesh), sep="/")
    by_path = typing.cast("dict[str, NamedSharding]", layout)
    params = merge(unbox_abstract(boxed), _stored_quantized(start, config))

    def sharding(path, leaf) -> Any:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        for first in range(len(names)):
            found = by_path.get("/".join(names[first:]))
            if found is not None and is_quantized(leaf):
                return quantized_sharding(found)
            if found is not None and len(found.spec) <= leaf.ndim:
                return found
        return replicated(mesh)

    shapes = jax.eval_shape(partial(_make_state, model, optimizer, config), params)
    return shapes, jax.tree_util.tree_map_with_path(sharding, shapes, is_leaf=is_quantized)


def _stored_quantized(start: epath.Path | None, config: TrainConfig) -> dict:
    """Returns the shapes of the quantized parameters that the run loads; raises ConfigError if one would train."""
    if start is None:
        return {}
    stored = traverse_util.flatten_dict(only_modules(stored_params(start), config.start_modules))
    quantized = traverse_util.unflatten_dict({path: leaf for path, leaf in stored.items() if is_quantized(leaf)})
    trainable, _ = split_trainable(abstract_params(config.model), config)
    trains = traverse_util.flatten_dict(quantized, sep="/").keys() & traverse_util.flatten_dict(trainable, sep="/")
    if trains:
        raise ConfigError(
            f"config.start_from: {start}: {min(trains)} is quantized and cannot train: train adapters "
            "(config.lora.rank), freeze it (config.frozen), or start from the model before quantization"
        )
    return quantized


def create_state(
    model: OmniVinci,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    shardings: TrainState,
    start: epath.Path | None = None,
) -> TrainState:
    """Creates the initial state, each array directly in its shards; `start` comes from `find_start`."""
    init = jax.jit(_initializer(model, optimizer, config), out_shardings=shardings)
    return init(jax.random.PRNGKey(config.seed), _load_start(start, config, shardings.params))


def create_frozen(
    model: OmniVinci,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    shardings: TrainState,
    start: epath.Path | None = None,
) -> dict:
    """Creates only the frozen parameters of the state that `create_state` returns for the same arguments."""
    init = _initializer(model, optimizer, config)
    return _create_part(lambda *drawn: init(*drawn).frozen, config, shardings.frozen, start)


def create_reference(
    model: OmniVinci,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    shardings: TrainState,
    start: epath.Path | None = None,
) -> dict:
    """Creates the parameters that train as they are at the start of the run, as if they were frozen."""
    init = _initializer(model, optimizer, config)
    return _create_part(lambda *drawn: cast_frozen(model, init(*drawn).trainable), config, shardings.trainable, start)


def _create_part(
    init: Callable[[Array, dict], dict], config: TrainConfig, shardings: dict, start: epath.Path | None
) -> dict:
    """Creates some of the initial parameters; loads no others from `start`."""
    create = jax.jit(init, out_shardings=shardings)
    return create(jax.random.PRNGKey(config.seed), _load_start(start, config, shardings))


def _load_start(start: epath.Path | None, config: TrainConfig, shardings: dict) -> dict:
    shardings = only_modules(without_adapters(shardings), config.start_modules)
    return load_params(start, shardings) if start and shardings else {}


def _initializer(
    model: OmniVinci, optimizer: optax.GradientTransformation, config: TrainConfig
) -> Callable[[Array, dict], TrainState]:
    def init(key: Array, loaded: dict) -> TrainState:
        """Parameters in `loaded` replace random ones."""
        # States once stored the other half of the key. Without the split, a seed would give other parameters.
        key, _ = jax.random.split(key)
        params = merge(nn.meta.unbox(initial_params(config, key)), loaded)
        return _make_state(model, optimizer, config, params)

    return init


def _make_state(
    model: OmniVinci, optimizer: optax.GradientTransformation, config: TrainConfig, params: dict
) -> TrainState:
    trainable, frozen = split_trainable(params, config)
    trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trainable)
    frozen = cast_frozen(model, frozen)
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable))


def cast_frozen(model: OmniVinci, frozen: dict) -> dict:
    """Casts frozen parameters to the compute dtype, except those whose role keeps their own."""

    def cast_leaf(role: Role, leaf: Array | Weight) -> Array | Weight:
        return cast(leaf, model.compute.dtype) if role.cast_frozen else leaf

    return jax.tree.map(cast_leaf, parameter_roles(model.config, frozen), frozen)
