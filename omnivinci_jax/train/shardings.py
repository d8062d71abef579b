"""How a run's parameters and optimizer state would lie on a mesh, known without a device of it."""

import math
from typing import Any, cast

import jax
from flax import traverse_util
from jax.sharding import NamedSharding

from omnivinci_jax.mesh.mesh import AXES, abstract_mesh
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.state import abstract_state, make_model


def describe_shardings(config: TrainConfig, devices: int | None) -> str:
    """A line for each parameter with its shape, its mesh axes and its bytes on a device, and the sums.

    Args:
        devices: how many there are; None for those of this process.

    Raises:
        ConfigError: a mesh that does not fit the devices, or a parameter that it does not divide.
    """
    mesh = abstract_mesh(config.mesh, devices or jax.device_count())
    shapes, shardings = abstract_state(
        make_model(config, "cpu"), make_optimizer(config.optimizer, config.steps, config.model), config, mesh
    )
    sizes = jax.tree.map(bytes_per_device, shapes, shardings)
    lines = []
    for held, trees in (("", "trainable"), (" (frozen)", "frozen")):
        leaves, layouts, taken = (
            cast("dict[str, Any]", traverse_util.flatten_dict(getattr(tree, trees), sep="/"))
            for tree in (shapes, shardings, sizes)
        )
        for path, leaf in sorted(leaves.items()):
            layout = ", ".join(_axes(entry) for entry in layouts[path].spec) or "whole"
            shape = "x".join(map(str, leaf.shape))
            lines.append(f"{path:60} {shape:>18} {leaf.dtype.name:8} {taken[path]:>15,}  {layout}{held}")
    parameters = sum(leaf.size for leaf in jax.tree.leaves((shapes.trainable, shapes.frozen)))
    totals = {name: sum(jax.tree.leaves(getattr(sizes, name))) for name in ("trainable", "frozen", "opt_state")}
    mesh_text = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in AXES)
    lines += [
        "",
        f"{parameters:,} parameters on {mesh.size} device(s): {mesh_text}",
        f"bytes a device: {totals['trainable']:,} trainable + {totals['frozen']:,} frozen parameters + "
        f"{totals['opt_state']:,} optimizer state = {sum(totals.values()):,}",
    ]
    return "\n".join(lines)


def bytes_per_device(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
    """Size of an array's part on each device."""
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _axes(entry: str | tuple[str, ...] | None) -> str:
    return "-" if entry is None else entry if isinstance(entry, str) else "+".join(entry)
