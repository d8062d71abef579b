"""One table from logical axes (what a dimension means) to mesh axes (which devices share it)."""

import math
from functools import partial
from typing import cast

import jax
import numpy as np
from flax import linen as nn
from flax.linen.spmd import logical_to_mesh_sharding
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.sequence.batch import SLOT_FIELDS, Batch
from omnivinci_jax.settings import DataConfig

# What the groups of a batch are shared over.
BATCH_AXES = ("data", "fsdp")

# models/sharding.py explains the names. Where two axes of one array want the same mesh axis, the first rule gets it.
RULES = (
    ("group", BATCH_AXES),
    ("media", (*BATCH_AXES, "context", "tensor")),
    ("item", ("context", "tensor")),
    ("embed", ("fsdp", "context")),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("norm", None),
    ("position", None),
    ("layers", None),
    ("length", "context"),
)


def parameter_shardings(variables: object, mesh: Mesh | AbstractMesh) -> object:
    """Shardings of boxed abstract parameters (what `jax.eval_shape(model.init, ...)` returns).

    Raises:
        ConfigError: a dimension that its mesh axes do not divide, or two dimensions that the rules give one mesh axis.
    """
    shardings = logical_to_mesh_sharding(
        nn.get_partition_spec(variables), cast(Mesh, mesh), RULES
    )  # an abstract one works too
    jax.tree_util.tree_map_with_path(partial(_check_layout, mesh=mesh), variables, is_leaf=_is_boxed)
    return shardings


def _is_boxed(leaf: object) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _check_layout(path: tuple, leaf: nn.LogicallyPartitioned, mesh: Mesh | AbstractMesh) -> None:
    rules, used = dict(RULES), {}
    for name, size in zip(leaf.names, leaf.value.shape, strict=True):
        axes = rules[name] if name else None
        axes = (axes,) if isinstance(axes, str) else axes or ()
        where = f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.value.shape}: dimension {name}"
        for axis in axes:
            if axis in used:
                raise ConfigError(f"{where} and dimension {used[axis]} are both on mesh axis {axis} (mesh/rules.py)")
            used[axis] = name
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            over = " x ".join(f"config.mesh.{axis} = {mesh.shape[axis]}" for axis in axes)
            raise ConfigError(f"{where} of {size} does not divide over {over}")


def batch_shardings(batch: Batch, mesh: Mesh | AbstractMesh) -> Batch:
    """Groups over data and fsdp; inside a group slots over context, tiles and windows over context and tensor."""
    slots, media = PartitionSpec(BATCH_AXES, None, "context"), PartitionSpec(BATCH_AXES, ("context", "tensor"))
    specs = {name: slots for name in SLOT_FIELDS} | {"tiles": media, "windows": media}
    return Batch(
        **{
            name: jax.tree.map(lambda _, name=name: NamedSharding(mesh, specs.get(name, PartitionSpec(BATCH_AXES))), x)
            for name, x in batch._asdict().items()
        }
    )


def check_batch(data: DataConfig, microbatches: int, mesh: Mesh) -> None:
    """Raises ConfigError for a batch that its mesh axes do not divide."""
    for name, size, axes, times in (
        ("groups", data.groups, BATCH_AXES, microbatches),
        ("capacity.slots", data.capacity.slots, ("context", "tensor"), 1),
        ("capacity.tiles", data.capacity.tiles, ("context", "tensor"), 1),
        ("capacity.windows", data.capacity.windows, ("context", "tensor"), 1),
    ):
        parts = times * math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            over = [f"config.mesh.{axis} = {mesh.shape[axis]}" for axis in axes]
            over += [f"config.microbatches = {times}"] if times > 1 else []
            raise ConfigError(f"config.data.{name} is {size}: it must be a multiple of {' x '.join(over)}")


def own_groups(groups: int, mesh: Mesh) -> list[int]:
    """Which groups of a global batch this process loads: those that its devices take a part of."""
    places = NamedSharding(mesh, PartitionSpec(BATCH_AXES)).addressable_devices_indices_map((groups,))
    return sorted({group for (place,) in filter(None, places.values()) for group in range(groups)[place]})


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Batch, groups: int, mesh: Mesh) -> Batch:
    """A global batch of `groups` groups of those that each process has loaded (`own_groups`)."""
    own = own_groups(groups, mesh)

    def put(local: np.ndarray, sharding: NamedSharding) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # a sharded array has one
            first, last = range(groups)[index[0]][0], range(groups)[index[0]][-1]
            return local[(slice(own.index(first), own.index(last) + 1), *index[1:])]

        return jax.make_array_from_callback((groups, *local.shape[1:]), sharding, part)

    return jax.tree.map(put, batch, batch_shardings(batch, mesh))
