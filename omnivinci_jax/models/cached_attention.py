"""Attention of new slots over a static cache of keys and values, whose rows have different lengths.

A row holds its conversation from slot 0 on, so the slot index is the rotary position. New keys and values are written
after the row's length, and query t of the new ones sees the slots up to length + t. Slots past a row's length hold
arbitrary values, which are overwritten before any query sees them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from omnivinci_jax.models.attention_kernels import MASKED, normalize_softmax, partial_attention
from omnivinci_jax.models.sharding import mesh_axes

_BLOCK = 512  # keys that several queries read at a time
_SINGLE_QUERY_BLOCK = 256  # the same for one query


class LayerCache(NamedTuple):
    """Keys (rotated) and values of one layer, each in the memory order that a single query reads."""

    keys: Float[Array, "B K D S"]
    values: Float[Array, "B K S D"]


class Past(NamedTuple):
    """The cache of one layer that the new slots of R rows attend to.

    lengths: filled slots of each of the R rows.
    rows: index of each in the cache, as many in each batch shard; None for all rows in order.
    """

    layer: LayerCache
    lengths: Int[Array, " R"]
    rows: Int[Array, " R"] | None


def cached_attention(
    q: Float[Array, "R T H D"], k: Float[Array, "R T K D"], v: Float[Array, "R T K D"], past: Past
) -> tuple[Float[Array, "R T H D"], LayerCache]:
    """Appends k and v to the cached rows, and attends from the new slots.

    Args:
        q: queries of the new slots.
        k: their keys.
        v: their values.
        past: the cache, which needs room for T more slots in each of these rows.

    Returns:
        the output, and the cache with the new slots.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _attend(q, k, v, *past)
    batch, heads = mesh_axes("group", "kv_heads")
    if heads and k.shape[2] % mesh.shape[heads]:
        heads = None  # every device holds all key/value heads
    new, layer = PartitionSpec(batch, None, heads), jax.tree.map(lambda _: PartitionSpec(batch, heads), past.layer)
    per_row = PartitionSpec(batch)
    attend = jax.shard_map(
        _attend,
        in_specs=(new, new, new, layer, per_row, None if past.rows is None else per_row),
        out_specs=(new, layer),
        check_vma=False,
    )
    return attend(q, k, v, *past)


def _attend(
    q: Array, k: Array, v: Array, layer: LayerCache, lengths: Int[Array, " R"], rows: Int[Array, " R"] | None
) -> tuple[Array, LayerCache]:
    """Does `cached_attention` on one device's rows and heads."""
    if rows is not None and len(rows) > 1:  # one after the other, so that each reads only the slots that it has filled
        return _attend_in_turn(q, k, v, layer, lengths, rows)
    new, capacity = q.shape[1], layer.values.shape[2]
    rows = None if rows is None else rows % len(layer.values)  # the index on this device
    layer = LayerCache(
        _write(layer.keys, k.transpose(0, 2, 3, 1), lengths, rows, axis=3),
        _write(layer.values, v.swapaxes(1, 2), lengths, rows, axis=2),
    )
    last_visible = lengths[:, None] + jnp.arange(new)

    def visible(slots: Int[Array, " s"]) -> Bool[Array, "R T s"]:
        return slots <= last_visible[..., None]

    if new == 1 and rows is None:  # a loop over blocks would cost more than the slots it skips
        half = capacity // 2

        def attend(slots: int, q: Array, layer: LayerCache, seen: Array) -> tuple[Array, Array, Array]:
            return partial_attention(q, layer.keys[..., :slots], layer.values[:, :, :slots], seen[..., :slots], "bksd")

        # Besides skipping slots, the branch keeps XLA on CPUs from making the cache twice: for the result and for the
        # products.
        branches = partial(attend, half), partial(attend, capacity)
        out, _, total = jax.lax.cond(lengths.max() < half, *branches, q, layer, visible(jnp.arange(capacity)))
        return normalize_softmax(out, total, v.dtype), layer

    block = min(_BLOCK if new > 1 else _SINGLE_QUERY_BLOCK, capacity)

    def add_block(index: Int[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # The last block ends with the cache; slots that the block before has already covered are masked.
        first = jnp.minimum(index * block, capacity - block)
        keys, values = _read(layer.keys, first, block, rows, axis=3), _read(layer.values, first, block, rows, axis=2)
        slots = first + jnp.arange(block)
        seen = visible(slots) & (slots >= index * block)
        return _merge(state, partial_attention(q, keys, values, seen, "bksd"))

    shape = (q.shape[0], k.shape[2], q.shape[2] // k.shape[2], new)
    nothing = (jnp.zeros((*shape, q.shape[3])), jnp.full(shape, MASKED), jnp.zeros(shape))
    blocks = (lengths.max() + new + block - 1) // block
    out, _, total = jax.lax.fori_loop(0, blocks, add_block, nothing)
    return normalize_softmax(out, total, v.dtype), layer


def _attend_in_turn(
    q: Array, k: Array, v: Array, layer: LayerCache, lengths: Int[Array, " R"], rows: Int[Array, " R"]
) -> tuple[Array, LayerCache]:
    def extend_row(layer: LayerCache, inputs: tuple[Array, ...]) -> tuple[LayerCache, Array]:
        q, k, v, lengths, rows = (value[None] for value in inputs)
        out, layer = _attend(q, k, v, layer, lengths, rows)
        return layer, out[0]

    layer, out = jax.lax.scan(extend_row, layer, (q, k, v, lengths, rows))
    return out, layer


def _write(cache: Array, new: Array, lengths: Int[Array, " R"], rows: Int[Array, " R"] | None, axis: int) -> Array:
    """Writes the new slots of each row after its length; `axis` is the slots' axis."""
    new = new.astype(cache.dtype)
    if len(new) > 1:
        return jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1))(cache, new, lengths)
    start: list[Array | int] = [0] * cache.ndim
    start[0], start[axis] = 0 if rows is None else rows[0], lengths[0]
    return jax.lax.dynamic_update_slice(cache, new, start)


def _read(cache: Array, first: Int[Array, ""], block: int, rows: Int[Array, " R"] | None, axis: int) -> Array:
    """Reads `block` slots of each row from slot `first` on."""
    if rows is None:
        return jax.lax.dynamic_slice_in_dim(cache, first, block, axis)
    start: list[Array | int] = [0] * cache.ndim
    sizes = list(cache.shape)
    start[0], start[axis] = rows[0], first
    sizes[0], sizes[axis] = 1, block
    return jax.lax.dynamic_slice(cache, start, sizes)


def _merge(one: tuple[Array, Array, Array], other: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Adds sums of exponentials over two sets of keys, relative to the larger of their maxima."""
    largest = jnp.maximum(one[1], other[1])
    scales = [jnp.exp(part[1] - largest) for part in (one, other)]
    out = one[0] * scales[0][..., None] + other[0] * scales[1][..., None]
    return out, largest, one[2] * scales[0] + other[2] * scales[1]
