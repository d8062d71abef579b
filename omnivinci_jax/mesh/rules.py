"""The rules that map logical axes (the meaning of a dimension) to mesh axes (the devices that shard it)."""

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

# The groups of a batch are sharded over these axes.
BATCH_AXES = ("data", "fsdp")

# models/sharding.py explains the names. If two dimensions of an array map to one mesh axis, the first rule wins.
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
    """Returns the shardings of boxed abstract parameters (the result of `jax.eval_shape(model.init, ...)`).

    Raises:
        ConfigError: mesh axes that do not divide their dimension, or two dimensions on one mesh axis.
    """
    shardings = logical_to_mesh_sharding(nn.get_partition_spec(variables), cast(Mesh, mesh), RULES)
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
    """Returns the shardings of a batch.

    Groups are sharded over data and fsdp; in a group, slots over context, tiles and windows over context and tensor.
    """
    slots, media = PartitionSpec(BATCH_AXES, None, "context"), PartitionSpec(BATCH_AXES, ("context", "tensor"))
    specs = {name: slots for name in SLOT_FIELDS} | {"tiles": media, "windows": media}
    return Batch(
        **{
            name: jax.tree.map(lambda _, name=name: NamedSharding(mesh, specs.get(name, PartitionSpec(BATCH_AXES))), x)
            for name, x in batch._asdict().items()
        }
    )


def check_batch(data: DataConfig, microbatches: int, mesh: Mesh) -> None:
    """Raises ConfigError if the mesh axes do not divide the batch."""
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


def local_groups(groups: int, mesh: Mesh) -> list[int]:
    """Returns the groups of a global batch that this process loads: those with a shard on its devices."""
    indices = NamedSharding(mesh, PartitionSpec(BATCH_AXES)).addressable_devices_indices_map((groups,))
    return sorted({group for (index,) in filter(None, indices.values()) for group in range(groups)[index]})


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Batch, groups: int, mesh: Mesh) -> Batch:
    """Makes the global batch of `groups` groups from the groups that each process loaded (`local_groups`)."""
    local_indices = local_groups(groups, mesh)

    def put(local: np.ndarray, sharding: NamedSharding) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # a sharded array has one
            first, last = range(groups)[index[0]][0], range(groups)[index[0]][-1]
            return local[(slice(local_indices.index(first), local_indices.index(last) + 1), *index[1:])]

        return jax.make_array_from_callback((groups, *local.shape[1:]), sharding, shard)

    return jax.tree.map(put, batch, batch_shardings(batch, mesh))
