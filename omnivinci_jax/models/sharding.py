"""Shards the model's arrays by logical axis names, which mesh/rules.py maps to mesh axes.

For parameters: `embed` a model width, `heads` and `kv_heads` query and key/value heads times their width, `mlp` a
hidden width, `vocab` rows of the vocabulary, `norm` the width of a norm, `position` rows of a position table, `layers`
the layers of a scanned stack, None an axis that is never sharded.
For activations: `group` the groups of a batch (and their rows), `length` slots, `media` the tiles or windows of all
groups, `item` the tiles, windows or slots of one group.
"""

import jax
from flax.linen.spmd import logical_to_mesh_axes, with_logical_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array


def constrain(x: Array, *axes: str | None) -> Array:
    """Shards the leading axes of `x` by their logical names and replicates the others.

    Does nothing without a mesh, or inside a shard_map, where each device already holds its own part.
    """
    if jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return x
    return with_logical_constraint(x, (*axes, *[None] * (x.ndim - len(axes))))


def mesh_axes(*axes: str | None) -> PartitionSpec:
    """Returns the mesh axes of logical axes, under the rules in force."""
    spec = logical_to_mesh_axes(axes)
    assert spec is not None
    return spec
