"""The decoder's static cache: made in a few lengths, repeated for several answers, and the weights as it wants them."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int32

from omnivinci_jax.config import Qwen2Config
from omnivinci_jax.models.cached_attention import LayerCache
from omnivinci_jax.models.initialization import parameter_roles
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.parameters import Role
from omnivinci_jax.models.qwen2 import Cache
from omnivinci_jax.models.sharding import constrain
from omnivinci_jax.models.weights import cast

SHORTEST = 1024
# Slots past a bucket's, which the last chunk of a prompt may write and nothing ever sees.
SLACK = 256


class Weights(NamedTuple):
    """Parameters for decoding: each decoder layer's own, and all others. See Qwen2.extend."""

    layers: tuple[dict[str, Any], ...]
    rest: dict[str, Any]


@partial(jax.jit, static_argnums=0)
def decoding_weights(model: OmniVinci, params: dict[str, Any]) -> Weights:
    """Copies of the parameters in the compute type, but for those whose role keeps them in their own.

    The decoder's parameters are in memory twice while `params` is kept.
    """

    def store(role: Role, leaf: jax.Array) -> jax.Array:
        return cast(leaf, model.compute.dtype) if role.cast_decoding else leaf

    params = jax.tree.map(store, parameter_roles(model.config, params), params)
    stack = params["llm"]["layers"]
    count = len(jax.tree.leaves(stack)[0])
    layers = tuple(jax.tree.map(lambda leaf, number=number: leaf[number], stack) for number in range(count))
    return Weights(layers, params | {"llm": {name: part for name, part in params["llm"].items() if name != "layers"}})


def bucket(slots: int) -> int:
    """The length of a cache that holds so many slots: 2^k or 3·2^k, so that few programs serve all prompts."""
    power = 1 << (slots - 1).bit_length()
    return max(SHORTEST, power * 3 // 4 if slots <= power * 3 // 4 else power)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def new_cache(config: Qwen2Config, rows: int, slots: int, dtype: DTypeLike, start: Int32[Array, " B"]) -> Cache:
    """An empty cache of `slots` slots and the slack, for rows whose first tokens are in the slots `start`."""
    rows_and_heads = rows, config.num_key_value_heads

    def empty(*shape: int) -> jax.Array:
        return _shared(jnp.zeros((*rows_and_heads, *shape), dtype))

    places, width = slots + SLACK, config.head_dim
    layers = (LayerCache(empty(width, places), empty(places, width)) for _ in range(config.num_hidden_layers))
    return Cache(tuple(layers), start, jnp.int32(0))


@partial(jax.jit, static_argnums=1)
def grown(cache: Cache, slots: int) -> Cache:
    """The cache with room for more."""
    rest, more = ((0, 0), (0, 0)), (0, slots - slots_of(cache))
    layers = (
        LayerCache(jnp.pad(layer.keys, (*rest, (0, 0), more)), jnp.pad(layer.values, (*rest, more, (0, 0))))
        for layer in cache.layers
    )
    return cache._replace(layers=tuple(layers))


@jax.jit
def rows_of(cache: Cache, rows: Int32[Array, " R"]) -> Cache:
    """A cache of these rows, each as often as it is named: several answers to one prompt."""
    layers = jax.tree.map(lambda x: _shared(x[rows]), cache.layers)
    return Cache(layers, cache.start[rows], cache.length)


def slots_of(cache: Cache) -> int:
    """How many slots the cache has, without the slack."""
    return cache.layers[0].values.shape[2] - SLACK


def _shared(x: jax.Array) -> jax.Array:
    """Rows over data and fsdp, heads over tensor; every head everywhere where they do not divide over it."""
    mesh = jax.sharding.get_abstract_mesh()
    divides = mesh.empty or x.shape[1] % mesh.shape["tensor"] == 0
    return constrain(x, "group", "kv_heads" if divides else None)
