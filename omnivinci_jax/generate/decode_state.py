"""The state of a running batch: for each row its keys and values, its length, its sampling and its last token."""

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

# Slots past a row's capacity, which a prefill step may write and no query ever sees.
SLACK = max(PREFILL_WIDTHS)


class DecodeState(NamedTuple):
    """B rows, each with a conversation of its own.

    layers: keys and values of each layer, in capacity + SLACK slots.
    lengths: how many slots of each row are filled.
    last_tokens: the last token of each row, which is not in the cache yet.
    seen: the tokens of each row's text, for the repetition penalty.
    sampling: how each row's next token is chosen.
    steps: how many tokens each row has answered. remaining: how many more it may; 0 where the row is idle.
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
        """B."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """How many slots a row has, without the slack."""
        return self.layers[0].values.shape[2] - SLACK


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def new_state(config: Qwen2Config, rows: int, capacity: int, dtype: DTypeLike) -> DecodeState:
    """Idle rows without slots."""
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
    return DecodeState(tuple(layers), zeros, zeros, seen, sampling, zeros, zeros)


@partial(jax.jit, static_argnums=1)
def with_capacity(state: DecodeState, capacity: int) -> DecodeState:
    """The state with more slots in each row."""
    more, rest = (0, capacity - state.capacity), ((0, 0), (0, 0))
    layers = (
        LayerCache(
            _shard(jnp.pad(layer.keys, (*rest, (0, 0), more))), _shard(jnp.pad(layer.values, (*rest, more, (0, 0))))
        )
        for layer in state.layers
    )
    return state._replace(layers=tuple(layers))


@jax.jit
def gather_rows(state: DecodeState, rows: Int32[Array, " R"]) -> DecodeState:
    """A state of these rows, each as often as it is named; -1 is an idle row."""
    state = jax.tree.map(lambda x: x[jnp.maximum(rows, 0)], state)
    layers = jax.tree.map(_shard, state.layers)
    return state._replace(layers=layers, remaining=jnp.where(rows < 0, 0, state.remaining))


@partial(jax.jit, donate_argnums=0)
def copy_row(state: DecodeState, source: Int32[Array, ""], target: Int32[Array, ""]) -> DecodeState:
    """The state with the keys, values and length of the row `source` in the row `target` too."""
    mesh = jax.sharding.get_abstract_mesh()
    copy = partial(_copy_row, axes=())
    if not mesh.empty:
        # Left to itself, XLA gathers all rows on every device to cut one of them out.
        (rows,) = mesh_axes("group")
        spec = PartitionSpec(rows, _heads_axis(state.layers[0].keys))
        copy = jax.shard_map(
            partial(_copy_row, axes=rows), in_specs=(spec, None, None), out_specs=spec, check_vma=False
        )
    layers = jax.tree.map(lambda x: copy(x, source, target), state.layers)
    return state._replace(layers=layers, lengths=state.lengths.at[target].set(state.lengths[source]))


def _copy_row(x: Array, source: Array, target: Array, *, axes: tuple[str, ...]) -> Array:
    """`copy_row` of the rows of one device, rows being sharded over `axes`."""
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
    """The state with a row that begins to answer; `remaining` of 0 makes it idle."""

    def put(values: Array, value: Array | int) -> Array:
        return values.at[row].set(value)

    return state._replace(
        lengths=put(state.lengths, length),
        last_tokens=put(state.last_tokens, last_token),
        seen=put(state.seen, seen),
        sampling=jax.tree.map(put, state.sampling, sampling),
        steps=put(state.steps, 0),
        remaining=put(state.remaining, remaining),
    )


@partial(jax.jit, donate_argnums=0)
def stop_row(state: DecodeState, row: Int32[Array, ""]) -> DecodeState:
    """The state with a row made idle; its slots stay."""
    return state._replace(remaining=state.remaining.at[row].set(0))


def _shard(x: Array) -> Array:
    """Rows over data and fsdp, heads over tensor."""
    return constrain(x, "group", _heads_axis(x) and "kv_heads")


def _heads_axis(x: Float[Array, "B K _ _"]) -> str | None:
    """The mesh axis that shards the key/value heads; None where it does not divide them: every device has them all."""
    mesh, (axis,) = jax.sharding.get_abstract_mesh(), mesh_axes("kv_heads")
    return axis if axis and not mesh.empty and x.shape[1] % mesh.shape[axis] == 0 else None
