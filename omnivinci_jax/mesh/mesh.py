"""The device mesh: axes data, fsdp, context and tensor."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.mesh.rules import RULES
from omnivinci_jax.settings import MeshConfig

AXES = ("data", "fsdp", "context", "tensor")


def make_mesh(settings: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """Makes a mesh over `devices` (default: all); one axis may be -1 and takes the remaining devices.

    Raises:
        ConfigError: sizes that do not multiply to the number of devices, or do not fit the torus.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(settings, len(devices))
    try:
        # jax's default axis type, Explicit, would require a sharding for every operation.
        return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    except NotImplementedError:
        shape = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ConfigError(
            f"config.mesh is {shape}: each axis must be a product of torus sides, for example 4 or 16 on 4x4x4"
        ) from None


def abstract_mesh(settings: MeshConfig, devices: int) -> AbstractMesh:
    """Returns the mesh that `make_mesh` would make, without needing the devices. Raises ConfigError."""
    return AbstractMesh(_sizes(settings, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextmanager
def on_mesh(mesh: Mesh, rules: Sequence[tuple[str, str | None]] = ()) -> Iterator[None]:
    """Sets the mesh and the logical axis rules; `rules` take precedence over RULES."""
    with jax.set_mesh(mesh), nn.logical_axis_rules((*rules, *RULES)):
        yield


def _sizes(settings: MeshConfig, count: int) -> tuple[int, ...]:
    sizes = [getattr(settings, axis) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    shape = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(f"config.mesh is {shape}: sizes must be 1 or more, and at most one -1")
    if count % fixed or (-1 not in sizes and count != fixed):
        raise ConfigError(f"config.mesh is {shape}: does not multiply to {count} device(s)")
    return tuple(count // fixed if size == -1 else size for size in sizes)
