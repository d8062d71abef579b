"""How a run's parameters and optimizer state are sharded over a mesh, computed without its devices."""

import math
from typing import Any, cast

import jax
from flax import traverse_util
from jax.sharding import Sharding

from omnivinci_jax.mesh.mesh import AXES, abstract_mesh
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.state import abstract_state, make_model


def describe_shardings(config: TrainConfig, devices: int | None) -> str:
    """Returns one line per parameter with its shape, mesh axes and bytes on each device, followed by totals.

    Args:
        devices: number of devices; None for those that jax finds.

    Raises:
        ConfigError: the mesh does not fit the devices, or does not divide a parameter.
    """
    mesh = abstract_mesh(config.mesh, devices or jax.device_count())
    shapes, shardings = abstract_state(
        make_model(config, "cpu"), make_optimizer(config.optimizer, config.steps, config.model), config, mesh
    )
    sizes = jax.tree.map(bytes_per_device, shapes, shardings)
    lines = []
    for suffix, part in (("", "trainable"), (" (frozen)", "frozen")):
        leaves, layouts, leaf_sizes = (
            cast("dict[str, Any]", traverse_util.flatten_dict(getattr(tree, part), sep="/"))
            for tree in (shapes, shardings, sizes)
        )
        for path, leaf in sorted(leaves.items()):
            layout = ", ".join(_axes(entry) for entry in layouts[path].spec) or "whole"
            shape = "x".join(map(str, leaf.shape))
            lines.append(f"{path:60} {shape:>18} {leaf.dtype.name:8} {leaf_sizes[path]:>15,}  {layout}{suffix}")
    parameters = sum(leaf.size for leaf in jax.tree.leaves((shapes.trainable, shapes.frozen)))
    totals = {name: sum(jax.tree.leaves(getattr(sizes, name))) for name in ("trainable", "frozen", "opt_state")}
    mesh_text = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in AXES)
    lines += [
        "",
        f"{parameters:,} parameters on {mesh.size} device(s): {mesh_text}",
        f"bytes per device: {totals['trainable']:,} trainable + {totals['frozen']:,} frozen parameters + "
        f"{totals['opt_state']:,} optimizer state = {sum(totals.values()):,}",
    ]
    return "\n".join(lines)


def bytes_per_device(leaf: jax.ShapeDtypeStruct, sharding: Sharding) -> int:
    """Returns the size of an array's shard on each device."""
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def tree_bytes(tree: Any) -> int:
    """Returns the bytes of abstract arrays, which have shardings, on each device."""
    return sum(bytes_per_device(leaf, leaf.sharding) for leaf in jax.tree.leaves(tree))


def _axes(entry: str | tuple[str, ...] | None) -> str:
    return "-" if entry is None else entry if isinstance(entry, str) else "+".join(entry)
