"""The state of a running batch: keys and values, length, sampling and last token of each row."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32

from omnivinci_jax.config import Qwen2Config
from omnivinci_jax.generate.sampling import SamplingArrays
from omnivinci_jax.generate.scheduler import PREFILL_WIDTHS
from omnivinci_jax.models.cached_attention import LayerCache
from omnivinci_jax.models.sharding import constrain, mesh_axes

# Slots past a row's capacity; a prefill step may write them, but no query attends to them.
SLACK = max(PREFILL_WIDTHS)


class DecodeState(NamedTuple):
    """B rows, one request each.

    layers: keys and values of each layer, in capacity + SLACK slots.
    lengths: filled slots of each row.
    last_tokens: the last token of each row, not in the cache yet.
    seen: which tokens occur in each row's text, for the repetition penalty.
    sampling: sampling parameters of each row.
    steps: tokens that each row has generated. remaining: tokens it may still generate; 0 if the row is idle.
    """

    layers: tuple[LayerCache, ...]
    lengths: Int32[Array, " B"]
    last_tokens: Int32[Array, " B"]
    seen: Bool[Array, "B V"]
    sampling: SamplingArrays
    steps: Int32[Array, " B"]
    remaining: Int32[Array, " B"]

    @property
    def rows(self) -> int:
        """Number of rows, B."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Slots per row, without the slack."""
        return self.layers[0].values.shape[2] - SLACK


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def new_state(config: Qwen2Config, rows: int, capacity: int, dtype: DTypeLike) -> DecodeState:
    """Returns a state of empty, idle rows."""
    width, slots = config.head_dim, capacity + SLACK

    def empty(*shape: int) -> Array:
        return _shard(jnp.zeros((rows, config.num_key_value_heads, *shape), dtype))

    layers = (LayerCache(empty(width, slots), empty(slots, width)) for _ in range(config.num_hidden_layers))
    zeros = jnp.zeros(rows, jnp.int32)
    sampling = SamplingArrays(
        temperature=jnp.zeros(rows), top_k=zeros, top_p=jnp.ones(rows), repetition_penalty=jnp.ones(rows),
        seed=jnp.zeros(rows, jnp.uint32), sample=zeros,
    )  # fmt: skip
    seen = jnp.zeros((rows, config.padded_vocab_size), bool)
    return shard_state(DecodeState(tuple(layers), zeros, zeros, seen, sampling, zeros, zeros))


def shard_state(state: DecodeState) -> DecodeState:
    """Shards all arrays in the one way in which programs return them: no program compiles again after another one."""
    rest = jax.tree.map(lambda x: constrain(x, "group"), state._replace(layers=()))
    return rest._replace(layers=jax.tree.map(_shard, state.layers))


@partial(jax.jit, static_argnums=1)
def with_capacity(state: DecodeState, capacity: int) -> DecodeState:
    """Returns the state with more slots in each row."""
    more, rest = (0, capacity - state.capacity), ((0, 0), (0, 0))
    layers = (
        LayerCache(
            _shard(jnp.pad(layer.keys, (*rest, (0, 0), more))), _shard(jnp.pad(layer.values, (*rest, more, (0, 0))))
        )
        for layer in state.layers
    )
    return shard_state(state._replace(layers=tuple(layers)))


@jax.jit
def gather_rows(state: DecodeState, rows: Int32[Array, " R"]) -> DecodeState:
    """Selects rows by index; an index may repeat, and -1 gives an idle row."""
    state = jax.tree.map(lambda x: x[jnp.maximum(rows, 0)], state)
    return shard_state(state._replace(remaining=jnp.where(rows < 0, 0, state.remaining)))


def select_rows(state: DecodeState, rows: Int32[Array, " R"]) -> DecodeState:
    """Selects everything but the keys and values of some rows: those stay with all rows."""
    return jax.tree.map(lambda x: x[rows], state._replace(layers=()))._replace(layers=state.layers)


def replace_rows(state: DecodeState, rows: Int32[Array, " R"], selected: DecodeState) -> DecodeState:
    """Puts rows of `select_rows` back, with the keys and values of all rows."""
    put = jax.tree.map(lambda x, new: x.at[rows].set(new), state._replace(layers=()), selected._replace(layers=()))
    return put._replace(layers=selected.layers)


@partial(jax.jit, donate_argnums=0)
def copy_row(state: DecodeState, source: Int32[Array, ""], target: Int32[Array, ""]) -> DecodeState:
    """Copies keys, values and length of row `source` to row `target`."""
    mesh = jax.sharding.get_abstract_mesh()
    copy = partial(_copy_row, axes=())
    if not mesh.empty:
        # Without shard_map, XLA gathers all rows on every device to slice one of them.
        (rows,) = mesh_axes("group")
        spec = PartitionSpec(rows, _heads_axis(state.layers[0].keys))
        copy = jax.shard_map(
            partial(_copy_row, axes=rows), in_specs=(spec, None, None), out_specs=spec, check_vma=False
        )
    layers = jax.tree.map(lambda x: copy(x, source, target), state.layers)
    return shard_state(state._replace(layers=layers, lengths=state.lengths.at[target].set(state.lengths[source])))


def _copy_row(x: Array, source: Array, target: Array, *, axes: tuple[str, ...]) -> Array:
    """Does `copy_row` on one device's rows; rows are sharded over `axes`."""
    first = jax.lax.axis_index(axes) * len(x) if axes else 0

    def row(index: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, index % len(x), 1)

    def has(index: Array) -> Array:
        return (first <= index) & (index < first + len(x))

    copied = jnp.where(has(source), row(source), 0)
    copied = jax.lax.psum(copied, axes) if axes else copied
    return jax.lax.dynamic_update_slice_in_dim(x, jnp.where(has(target), copied, row(target)), target % len(x), 0)


@partial(jax.jit, donate_argnums=0)
def start_row(
    state: DecodeState,
    row: Int32[Array, ""],
    length: Int32[Array, ""],
    last_token: Int32[Array, ""],
    seen: Bool[Array, " V"],
    sampling: SamplingArrays,
    remaining: Int32[Array, ""],
) -> DecodeState:
    """Starts the answer of a row; with `remaining` 0 the row is idle."""

    def put(values: Array, value: Array | int) -> Array:
        return values.at[row].set(value)

    started = state._replace(
        lengths=put(state.lengths, length),
        last_tokens=put(state.last_tokens, last_token),
        seen=put(state.seen, seen),
        sampling=jax.tree.map(put, state.sampling, sampling),
        steps=put(state.steps, 0),
        remaining=put(state.remaining, remaining),
    )
    return shard_state(started)


@partial(jax.jit, donate_argnums=0)
def stop_row(state: DecodeState, row: Int32[Array, ""]) -> DecodeState:
    """Makes a row idle; its keys and values stay."""
    return shard_state(state._replace(remaining=state.remaining.at[row].set(0)))


def _shard(x: Array) -> Array:
    """Shards rows over data and fsdp, heads over tensor."""
    return constrain(x, "group", _heads_axis(x) and "kv_heads")


def _heads_axis(x: Float[Array, "B K _ _"]) -> str | None:
    """Returns the mesh axis that shards key/value heads; None if it does not divide them, so every device has all."""
    mesh, (axis,) = jax.sharding.get_abstract_mesh(), mesh_axes("kv_heads")
    return axis if axis and not mesh.empty and x.shape[1] % mesh.shape[axis] == 0 else None
