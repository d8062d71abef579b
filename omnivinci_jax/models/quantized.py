"""Quantized weights: int4, int8 and float8 arrays with scales, in place of dense kernels.

Three schemes, told apart by the type of the values:

    w4a16   uint8          two int4 values a byte, a scale for each group of inputs; activations stay floating point
    w8a8    int8           a scale for each output; activations become int8 with a scale for each token
    fp8     float8_e4m3fn  as w8a8, in float8
"""

import math
from functools import partial, reduce
from operator import add
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from omnivinci_jax.models.sharding import constrain
from omnivinci_jax.models.weights import Axes, Weight

Scheme = Literal["w4a16", "w8a8", "fp8"]
GROUP_SIZE = 128
_TYPES: dict[Scheme, Any] = {
    "w4a16": jnp.dtype(jnp.uint8),
    "w8a8": jnp.dtype(jnp.int8),
    "fp8": jnp.dtype(jnp.float8_e4m3fn),
}
# What the largest absolute value becomes. int4 ends at -8 and 7: 7.5 splits the difference.
_LARGEST = {"w4a16": 7.5, "w8a8": 127.0, "fp8": 448.0}
_TINY = 1e-12
# A CPU multiplies up to so many tokens by `_by_lanes`: with more, not the memory but the product is the limit. XLA's
# int8 product is fast except for a single token.
_FEW_TOKENS = {"w4a16": 4, "w8a8": 1, "fp8": 1}
# Of an output: with more slices, XLA uses no vector instructions.
_MAX_SLICES = 64
_MIN_LANES = 16


@struct.dataclass
class QuantizedArray(Weight):
    """A quantized kernel [in, out], stored as torch stores it, outputs first.

    values: [..., out, in], or uint8 [..., out, in / 2] for int4: input 2i in the low half of byte i, input 2i + 1 in
        the high half, both plus 8.
    scales: float32 [..., out, groups]; there is one group except in w4a16.

    The dots are the layers of a scanned stack.
    """

    values: Any
    scales: Any

    @property
    def scheme(self) -> Scheme:
        """The scheme of the values' type."""
        return next(scheme for scheme, dtype in _TYPES.items() if dtype == self.values.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """([layers,] in, out)."""
        *stack, rows, columns = self.values.shape
        return *stack, columns * (2 if self.scheme == "w4a16" else 1), rows

    def matmul(self, x: Float[Array, "*batch in"], axes: Axes, out_dtype: DTypeLike) -> Float[Array, "*batch out"]:
        """Multiplies by the dequantized values; w8a8 and fp8 first quantize each token of x.

        The gradient in x is that of the dequantized kernel, as if nothing were rounded.
        """
        return _product(x, self, axes, out_dtype)


def is_quantized(leaf: object) -> bool:
    """Returns whether a leaf of a parameter tree is a quantized array; makes `jax.tree.map` pass it whole."""
    return isinstance(leaf, QuantizedArray)


def as_dicts(params: dict) -> dict:
    """Returns parameters with a dict in place of each quantized array, as they are stored."""

    def stored(leaf: Any) -> Any:
        if is_quantized(leaf):
            return {"values": leaf.values, "scales": leaf.scales}
        return as_dicts(leaf) if isinstance(leaf, dict) else leaf

    return {name: stored(leaf) for name, leaf in params.items()}


def from_dicts(stored: dict) -> Any:
    """Inverts `as_dicts`."""
    if stored.keys() == {"values", "scales"}:
        return QuantizedArray(**stored)
    return {name: from_dicts(leaf) if isinstance(leaf, dict) else leaf for name, leaf in stored.items()}


def quantize(
    kernel: Float[Array, "*stack in out"],
    scheme: Scheme,
    group_size: int = GROUP_SIZE,
    clip: Float[Array, "*stack out groups"] | None = None,
) -> QuantizedArray:
    """Rounds a kernel to the nearest quantized values.

    Args:
        kernel: the kernel; for w4a16, `group_size` divides its inputs.
        scheme: how to quantize.
        group_size: inputs that share a scale in w4a16.
        clip: largest absolute value of each group; larger ones are clipped. None: the group's largest.
    """
    x = jnp.swapaxes(kernel.astype(jnp.float32), -1, -2)
    x = x.reshape(*x.shape[:-1], -1, group_size if scheme == "w4a16" else x.shape[-1])
    largest = jnp.abs(x).max(axis=-1) if clip is None else clip
    scales = jnp.where(largest > _TINY, largest / _LARGEST[scheme], 1.0)
    values = _round(x / scales[..., None], scheme).reshape(*x.shape[:-2], -1)
    if scheme == "w4a16":
        pairs = (values + 8).astype(jnp.uint8)
        values = pairs[..., 0::2] | pairs[..., 1::2] << 4
    return QuantizedArray(values, scales)


def dequantize(weight: QuantizedArray) -> Float[Array, "*stack in out"]:
    """Returns the kernel that a quantized one stands for, in float32."""
    return jnp.swapaxes(_scaled(_values(weight.values), weight.scales), -1, -2)


def _round(x: Array, scheme: Scheme) -> Array:
    if scheme == "fp8":
        return jnp.clip(x, -448, 448).astype(jnp.float8_e4m3fn)
    low, high = (-8, 7) if scheme == "w4a16" else (-127, 127)
    return jnp.clip(jnp.round(x), low, high).astype(jnp.int8)


def _values(stored: Array) -> Array:
    """Returns values [..., out, in] in float32."""
    if stored.dtype != jnp.uint8:
        return stored.astype(jnp.float32)
    pairs = jnp.stack([stored & 15, stored >> 4], axis=-1).reshape(*stored.shape[:-1], -1)
    return pairs.astype(jnp.float32) - 8


def _scaled(values: Array, scales: Array) -> Array:
    groups = values.reshape(*scales.shape, -1) * scales[..., None]
    return groups.reshape(values.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: Array, weight: QuantizedArray, axes: Axes, out_dtype: DTypeLike) -> Array:
    mesh, scheme = jax.sharding.get_abstract_mesh(), weight.scheme
    alone = mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual
    if not alone:  # as `gather_kernel`
        names = [None if axis == "embed" else axis for axis in reversed(axes)]
        weight = QuantizedArray(constrain(weight.values, *names), constrain(weight.scales, names[0], None))
    x, token_scales = (x, None) if scheme == "w4a16" else _quantize_tokens(x, scheme)
    on_cpu = partial(_on_cpu, alone, out_dtype)
    product = jax.lax.platform_dependent(x, weight, cpu=on_cpu, default=partial(_whole, out_dtype))
    return product if token_scales is None else (product * token_scales).astype(out_dtype)


def _product_forward(x: Array, weight: QuantizedArray, axes: Axes, out_dtype: DTypeLike) -> tuple[Array, tuple]:
    return _product(x, weight, axes, out_dtype), (jnp.zeros((), x.dtype), weight)


def _product_backward(_axes: Axes, _out_dtype: DTypeLike, saved: tuple, cotangent: Array) -> tuple[Array, None]:
    like, weight = saved
    values = _scaled(_values(weight.values), weight.scales).astype(like.dtype)
    return jnp.dot(cotangent.astype(like.dtype), values), None


_product.defvjp(_product_forward, _product_backward)


def _quantize_tokens(x: Array, scheme: Scheme) -> tuple[Array, Array]:
    """Quantizes each token of x; returns values and float32 scales [*batch, 1]."""
    x = x.astype(jnp.float32)
    scales = jnp.maximum(jnp.abs(x).max(axis=-1, keepdims=True), _TINY) / _LARGEST[scheme]
    return _round(x / scales, scheme), scales


def _dot(x: Array, values: Array, out_dtype: DTypeLike) -> Array:
    """Computes x · valuesᵀ."""
    contracted = ((x.ndim - 1,), (1,)), ((), ())
    return jax.lax.dot_general(x, values, contracted, preferred_element_type=out_dtype)


def _whole(out_dtype: DTypeLike, x: Array, weight: QuantizedArray) -> Array:
    """Multiplies int8 and float8 in their own type; dequantizes int4 in the type of x."""
    if weight.scheme == "w4a16":
        return _dequantized(out_dtype, x, weight)
    exact = jnp.int32 if weight.scheme == "w8a8" else jnp.float32
    return _dot(x, weight.values, exact).astype(jnp.float32) * weight.scales[:, 0]


def _dequantized(out_dtype: DTypeLike, x: Array, weight: QuantizedArray) -> Array:
    """Dequantizes the kernel, then multiplies."""
    if weight.scheme != "w4a16":
        x, out_dtype = x.astype(jnp.float32), jnp.float32
    return _dot(x, _scaled(_values(weight.values), weight.scales).astype(x.dtype), out_dtype)


def _on_cpu(alone: bool, out_dtype: DTypeLike, x: Array, weight: QuantizedArray) -> Array:
    # Without the barrier XLA dequantizes before the loop over decode steps, and every step reads float32.
    x, weight = jax.lax.optimization_barrier((x, weight))
    few = alone and math.prod(x.shape[:-1]) <= _FEW_TOKENS[weight.scheme] and _lanes(weight) >= _MIN_LANES
    product = _by_lanes if few else _dequantized if weight.scheme == "fp8" else _whole
    return product(out_dtype, x, weight)


def _lanes(weight: QuantizedArray) -> int:
    """Returns how many neighbouring columns of the stored values a CPU multiplies at once: a power of two."""
    columns, group = weight.values.shape[-1], weight.values.shape[-1] // weight.scales.shape[-1]
    lanes = math.gcd(group, _MIN_LANES)
    while columns // lanes > _MAX_SLICES and group % (2 * lanes) == 0:
        lanes *= 2
    return lanes


def _by_lanes(out_dtype: DTypeLike, x: Array, weight: QuantizedArray) -> Array:
    """Dequantizes values in registers, so that memory delivers only the quantized bytes.

    XLA compiles the sum over slices of the inputs as one loop, with vector instructions over the lanes of a slice, and
    divides the outputs between cores.
    """
    tokens = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    columns, lanes, packed = weight.values.shape[-1], _lanes(weight), weight.scheme == "w4a16"
    inputs = (tokens[:, 0::2], tokens[:, 1::2]) if packed else (tokens,)

    def multiply(start: int) -> Array:
        stored = weight.values[:, start : start + lanes]
        halves = ((stored & 15).astype(jnp.int8), (stored >> 4).astype(jnp.int8)) if packed else (stored,)
        some = [part[:, None, start : start + lanes] for part in inputs]
        return reduce(add, (part * half.astype(jnp.float32) for part, half in zip(some, halves, strict=True)))

    # Runs of slices that one loop adds up; in w4a16 within a run, groups with a scale each.
    run = lanes * _MAX_SLICES
    group = min(run, columns // weight.scales.shape[-1])
    product = jnp.zeros((len(tokens), weight.values.shape[0]))
    for first in range(0, columns, run):
        total = 0.0
        for start in range(first, min(first + run, columns), group):
            part = reduce(add, map(multiply, range(start, min(start + group, columns), lanes)))
            total += part * weight.scales[:, start // group, None] if packed else part
        product += jnp.dot(total, jnp.ones(lanes))
    if packed:  # the halves are values plus 8
        product -= 8 * jnp.dot(tokens.reshape(len(tokens), -1, 2 * group).sum(axis=-1), weight.scales.T)
    else:
        product *= weight.scales[:, 0]
    return product.astype(out_dtype).reshape(*x.shape[:-1], -1)
