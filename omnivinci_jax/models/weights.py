"""Products with weights: one `matmul` for every type of weight.

A weight is an array [in, out] or a `Weight` that replaces it in the parameter tree: here an array with an adapter,
elsewhere a quantized array. Dense layers, embeddings and the output head use weights only through this file.
"""

import typing
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from omnivinci_jax.models.parameters import Role, declare
from omnivinci_jax.models.sharding import constrain

Axes = tuple[str | None, str | None]


class Weight(ABC):
    """A matrix [in, out] that is not stored as one array.

    Subclasses are pytrees. In a scanned stack the first axis of every leaf is the layer, so `shape` must be read from
    the leaves.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(in, out)."""

    @abstractmethod
    def matmul(self, x: Float[Array, "*batch in"], axes: Axes, out_dtype: DTypeLike) -> Float[Array, "*batch out"]:
        """See the function `matmul`; must be differentiable in x."""

    @property
    def T(self) -> "Weight":
        """The transpose [out, in], which a tied output head needs."""
        raise TypeError(f"{type(self).__name__} cannot be an embedding table")

    def take_rows(self, ids: Int[Array, "*batch"], axes: Axes, dtype: DTypeLike) -> Float[Array, "*batch out"]:
        """See the function `take_rows`, which embeddings need."""
        raise TypeError(f"{type(self).__name__} cannot be an embedding table")


@struct.dataclass
class AdaptedWeight(Weight):
    """A weight with a low-rank adapter: weight + scale · a @ b (models/lora.py)."""

    weight: Float[Array, "in out"] | Weight
    a: Float[Array, "in rank"]
    b: Float[Array, "rank out"]
    scale: Float[Array, ""]

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        return typing.cast("tuple[int, int]", self.weight.shape)

    def matmul(self, x: Float[Array, "*batch in"], axes: Axes, out_dtype: DTypeLike) -> Float[Array, "*batch out"]:
        """Multiplies by the weight and by the two factors; never computes a @ b."""
        product = matmul(x, self.weight, axes, out_dtype)
        low_rank = matmul(x, self.a, (axes[0], None), x.dtype)
        return product + matmul(low_rank, self.scale * self.b, (None, axes[1]), out_dtype)


def weight_param(
    module: nn.Module, name: str, init: Any, shape: tuple[int, int], axes: Axes, role: Role
) -> Float[Array, "in out"] | Weight:
    """Returns the weight `name` of a module; `init` creates it when the module is initialised.

    Raises:
        ValueError: a weight of another shape.
    """
    given = module.get_variable("params", name)
    if not isinstance(given, Weight):
        return module.param(name, declare(init, axes, role), shape)
    # Not `module.param`, which requires leaves of the shape that `init` returns.
    if given.shape != shape:
        raise ValueError(f"{'/'.join(module.path)}/{name} is {given.shape}: expected {shape}")
    return given


def matmul(
    x: Float[Array, "*batch in"], weight: Float[Array, "in out"] | Weight, axes: Axes, out_dtype: DTypeLike
) -> Float[Array, "*batch out"]:
    """Computes x @ weight in the type of x, accumulated and returned in `out_dtype`; `axes` are the weight's."""
    if isinstance(weight, Weight):
        return weight.matmul(x, axes, out_dtype)
    return _matmul(x, weight, axes, out_dtype)


def take_rows(
    table: Float[Array, "in out"] | Weight, ids: Int[Array, "*batch"], axes: Axes, dtype: DTypeLike
) -> Float[Array, "*batch out"]:
    """Looks up rows of a table, in `dtype`; an id outside it gives NaN rather than another row."""
    if isinstance(table, Weight):
        return table.take_rows(ids, axes, dtype)
    # Unsharded width, because XLA looks up rows poorly otherwise; in the table's type, in which its gradient is summed.
    return jnp.take(gather_kernel(table, axes, table.dtype), ids, axis=0).astype(dtype)


def cast(weight: Array | Weight, dtype: DTypeLike) -> Array | Weight:
    """Casts a parameter to another type; a `Weight` keeps the types it was made with."""
    return weight if isinstance(weight, Weight) else weight.astype(dtype)


def gather_kernel(kernel: Float[Array, "in out"], axes: Axes, dtype: DTypeLike) -> Float[Array, "in out"]:
    """Returns the kernel in `dtype`, gathered along its model width, which fsdp and context shard.

    Otherwise XLA multiplies by each device's part of the kernel and sums activations over devices, which are larger.
    """
    return constrain(kernel.astype(dtype), *(None if axis == "embed" else axis for axis in axes))


def weight_gradient(x: Float[Array, "*batch in"], y: Float[Array, "*batch out"]) -> Float[Array, "in out"]:
    """Returns a kernel's gradient from its input and its output's cotangent: a sum of outer products in float32."""
    return jax.lax.platform_dependent(x, y, cpu=_outer_products_cpu, default=_outer_products)


# JAX's own gradient rule rounds the kernel's gradient to the type of x, and makes a training step on a CPU take 1.5
# times as long (`_outer_products_cpu`).
@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(x: Array, kernel: Array, axes: Axes, out_dtype: DTypeLike) -> Array:
    return jnp.dot(x, gather_kernel(kernel, axes, x.dtype), preferred_element_type=out_dtype)


def _matmul_forward(x: Array, kernel: Array, axes: Axes, out_dtype: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(x, kernel, axes, out_dtype), (x, kernel)


def _matmul_backward(
    axes: Axes, _out_dtype: DTypeLike, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    cotangent = cotangent.astype(x.dtype)
    # Sums first, then shards. For a sharded sum, XLA would reshard x and the cotangent from length to width, and gather
    # them whole on the way.
    gradient = constrain(gather_kernel(weight_gradient(x, cotangent), axes, kernel.dtype), *axes)
    return jnp.dot(cotangent, gather_kernel(kernel, axes, x.dtype).T), gradient


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _outer_products(x: Array, y: Array) -> Array:
    batch = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, y, ((batch, batch), ((), ())), preferred_element_type=jnp.float32)


def _outer_products_cpu(x: Array, y: Array) -> Array:
    """Puts the narrower operand first, because XLA transposes the first; the barrier keeps XLA from swapping them."""
    if x.shape[-1] <= y.shape[-1]:
        return _outer_products(x, y)
    return jax.lax.optimization_barrier(_outer_products(y, x)).T
