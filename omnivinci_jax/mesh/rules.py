"""One table from logical axes (what a dimension means) to mesh axes (which devices share it)."""

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
    ("length", None),
)


def parameter_shardings(variables: object, mesh: Mesh) -> object:
    """Shardings of boxed abstract parameters (what `jax.eval_shape(model.init, ...)` returns)."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(variables), mesh, RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Groups over the data and fsdp axes; each group whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: object, mesh: Mesh) -> object:
    """Moves a host batch to the mesh."""
    return jax.device_put(batch, batch_sharding(mesh))
