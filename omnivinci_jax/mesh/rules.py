"""One table from logical axes (what a dimension means) to mesh axes (which devices share it)."""

import math
from functools import partial

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from omnivinci_jax.errors import ConfigError

# What the groups of a batch are shared over.
BATCH_AXES = ("data", "fsdp")

# The names are explained in models/layers.py.
RULES = (
    ("embed", "fsdp"),
    ("token_embed", None),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("norm", None),
    ("position", None),
    ("layers", None),
    ("group", BATCH_AXES),
    ("media", (*BATCH_AXES, "context", "tensor")),
    ("length", "context"),
    ("attention_heads", ("tensor", "context")),
)


def parameter_shardings(variables: object, mesh: Mesh | AbstractMesh) -> object:
    """Shardings of boxed abstract parameters (what `jax.eval_shape(model.init, ...)` returns).

    Raises:
        ConfigError: a dimension that its mesh axes do not divide, or two dimensions that the rules give one mesh axis.
    """
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(variables), mesh, RULES)
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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Groups over the data and fsdp axes; each group whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: object, mesh: Mesh) -> object:
    """Moves a host batch to the mesh."""
    return jax.device_put(batch, batch_sharding(mesh))
