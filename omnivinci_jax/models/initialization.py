"""Initialises parameters, and gives their shapes and roles without creating any."""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AbstractMesh

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.models import lora
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.parameters import Parameter, Role
from omnivinci_jax.sequence.assemble import empty_group
from omnivinci_jax.sequence.batch import Capacity

_SMALLEST = Capacity(rows=1, slots=2, tiles=1, windows=1, clips=1)


def init_batch(config: OmniVinciConfig) -> object:
    """Returns the smallest batch, to initialise parameters with."""
    return jax.tree.map(lambda array: jnp.asarray(array)[None], empty_group(config, _SMALLEST))


def boxed_params(config: OmniVinciConfig, key: jax.Array) -> dict:
    """Initialises parameters in their boxes (models/parameters.py); to be traced."""
    initialize, abstract = _initializer(config)
    return jax.tree.unflatten(jax.tree.structure(abstract), initialize(key))


def abstract_boxes(config: OmniVinciConfig) -> dict:
    """Returns the shapes and dtypes of the parameters in their boxes."""
    return _initializer(config)[1]


@cache
def _initializer(config: OmniVinciConfig) -> tuple[Callable[[jax.Array], list[jax.Array]], dict]:
    """Returns a function from a key to the parameters, and their shapes; one trace, which takes seconds, gives both."""

    def initialize(key: jax.Array) -> dict:
        return cast("dict", OmniVinci(config).init(key, init_batch(config))["params"])

    # Without a mesh, because the batch is too small to shard; only this pass's parameters are kept.
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())), nn.logical_axis_rules(()):
        traced, abstract = jax.make_jaxpr(initialize, return_shape=True)(jax.random.PRNGKey(0))
    return jaxpr_as_fun(traced), cast("dict", abstract)


def abstract_params(config: OmniVinciConfig) -> dict:
    """Returns the shapes and dtypes of the parameters."""
    return unbox_abstract(abstract_boxes(config))


def unbox_abstract(boxes: dict) -> dict:
    """Unboxes shapes. `nn.meta.unbox` would constrain shardings, which only traced arrays can take."""
    return jax.tree.map(lambda box: box.value, boxes, is_leaf=lambda leaf: isinstance(leaf, Parameter))


def parameter_shapes(config: OmniVinciConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the parameters by path with slashes."""
    leaves = cast("dict[str, jax.ShapeDtypeStruct]", traverse_util.flatten_dict(abstract_params(config), sep="/"))
    return {path: leaf.shape for path, leaf in leaves.items()}


def parameter_roles(config: OmniVinciConfig, params: dict) -> dict:
    """Returns the role of each parameter in a tree like `params`: some or all of a model's, with or without adapters.

    Raises:
        KeyError: a parameter that the model does not have.
    """
    declared = _declared_roles(config)

    def role(path: tuple[Any, ...], _leaf: object) -> Role:
        return lora.ROLES[path[-1]] if path[-1] in lora.ROLES else declared[path]

    return cast("dict", traverse_util.path_aware_map(role, params))


@cache
def _declared_roles(config: OmniVinciConfig) -> dict[tuple[str, ...], Role]:
    flat = cast("dict[tuple[str, ...], Parameter]", traverse_util.flatten_dict(abstract_boxes(config)))
    return {path: box.role for path, box in flat.items()}
