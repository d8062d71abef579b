"""Attention of new slots over a static cache of keys and values.

Rows end together: a row of fewer tokens begins at a later slot, so every step writes one slot for all rows, and what a
query sees is two comparisons: slot s of a row sees slots start … s. Slots before a row's start hold rubbish that
nothing sees; slots past the end are written before they are seen.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnivinci_jax.models.attention_kernels import MASKED, normalize_softmax, partial_attention

_BLOCK = 512  # keys taken at once by several queries


class LayerCache(NamedTuple):
    """Keys (rotated) and values of one layer, each as the product of a single query reads them in order."""

    keys: Float[Array, "B K D S"]
    values: Float[Array, "B K S D"]


def cached_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    layer: LayerCache,
    start: Int[Array, " B"],
    length: Int[Array, ""],
) -> tuple[Float[Array, "B T H D"], LayerCache]:
    """Writes k and v to slots length … length + T - 1, and attends from there.

    Args:
        q: queries of the new slots.
        k: their keys.
        v: their values.
        layer: what came before; needs room for T more slots.
        start: first slot of each row.
        length: first new slot.
    """
    new = q.shape[1]
    keys, values = k.transpose(0, 2, 3, 1).astype(layer.keys.dtype), v.swapaxes(1, 2).astype(layer.values.dtype)
    layer = LayerCache(
        jax.lax.dynamic_update_slice_in_dim(layer.keys, keys, length, axis=3),
        jax.lax.dynamic_update_slice_in_dim(layer.values, values, length, axis=2),
    )
    slots = length + jnp.arange(new)

    def visible(keys: Int[Array, " s"]) -> Bool[Array, "B T s"]:
        return (keys >= start[:, None, None]) & (keys <= slots[:, None])

    capacity = layer.values.shape[2]
    block = min(_BLOCK, capacity)
    if new == 1:  # a block loop would cost more than the slots it leaves out
        half = capacity // 2

        def attend(slots: int, q: Array, layer: LayerCache, seen: Array) -> tuple[Array, Array, Array]:
            return partial_attention(q, layer.keys[..., :slots], layer.values[:, :, :slots], seen[..., :slots], "bksd")

        # Besides the slots that it leaves out, the branch keeps XLA from making the cache twice on CPUs, once for the
        # result and once for the products.
        branches = partial(attend, half), partial(attend, capacity)
        out, _, total = jax.lax.cond(length < half, *branches, q, layer, visible(jnp.arange(capacity)))
        return normalize_softmax(out, total, v.dtype), layer

    def add_block(number: Int[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # The last block ends with the cache: what it shares with the one before is left to that one.
        first = jnp.minimum(number * block, capacity - block)
        keys, values = (
            jax.lax.dynamic_slice_in_dim(x, first, block, axis) for x, axis in ((layer.keys, 3), (layer.values, 2))
        )
        places = first + jnp.arange(block)
        seen = visible(places) & (places >= number * block)
        return _merged(state, partial_attention(q, keys, values, seen, "bksd"))

    shape = (q.shape[0], k.shape[2], q.shape[2] // k.shape[2], new)
    nothing = (jnp.zeros((*shape, q.shape[3])), jnp.full(shape, MASKED), jnp.zeros(shape))
    blocks = (length + new + block - 1) // block
    out, _, total = jax.lax.fori_loop(0, blocks, add_block, nothing)
    return normalize_softmax(out, total, v.dtype), layer


def _merged(one: tuple[Array, Array, Array], other: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Sums of exponentials over two sets of keys, relative to the larger of their maxima."""
    largest = jnp.maximum(one[1], other[1])
    scales = [jnp.exp(part[1] - largest) for part in (one, other)]
    out = one[0] * scales[0][..., None] + other[0] * scales[1][..., None]
    return out, largest, one[2] * scales[0] + other[2] * scales[1]
