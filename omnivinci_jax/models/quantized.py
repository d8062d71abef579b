"""Quantized weights: int4, int8 and float8 arrays with scales, in place of dense kernels.

Three schemes, told apart by the type of the values:

    w4a16   uint8          two int4 values a byte, a scale for each group of inputs; activations stay floating point
    w8a8    int8           a scale for each output; activations become int8 with a scale for each token
    fp8     float8_e4m3fn  as w8a8, in float8
"""

import math
import os
from functools import partial
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
# A CPU multiplies up to so many tokens block by block: with more, not the memory but the product is the limit. XLA's
# int8 product is fast except for a single token.
_FEW_TOKENS = {"w4a16": 8, "w8a8": 1, "fp8": 8}
# Values that a CPU dequantizes at a time, into its cache; but at least so many outputs.
_BLOCK_VALUES, _MIN_BLOCK = 2**15, 32


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
    few = math.prod(x.shape[:-1]) <= _FEW_TOKENS[scheme] and _block(weight) >= _MIN_BLOCK
    on_cpu = _by_blocks if few and alone else _dequantized if scheme == "fp8" else _whole
    product = jax.lax.platform_dependent(x, weight, cpu=partial(on_cpu, out_dtype), default=partial(_whole, out_dtype))
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


def _block(weight: QuantizedArray) -> int:
    """Returns how many outputs a CPU dequantizes at a time: a power of two that divides them, in several blocks."""
    width, outputs = weight.shape
    largest = max(_MIN_BLOCK, min(_BLOCK_VALUES // width, outputs // 2))
    return math.gcd(outputs, 2 ** (largest.bit_length() - 1))


def _by_blocks(out_dtype: DTypeLike, x: Array, weight: QuantizedArray) -> Array:
    """Dequantizes some outputs at a time, so that they stay in the cache: memory only delivers the quantized bytes.

    XLA runs the independent loops over the parts on different cores.
    """
    if weight.scheme != "w4a16":
        x, out_dtype = x.astype(jnp.float32), jnp.float32
    tokens = x.reshape(-1, x.shape[-1])
    if weight.scheme == "w4a16":
        halves = tokens[:, 0::2], tokens[:, 1::2]
    block = _block(weight)
    blocks = weight.shape[1] // block
    parts = max(n for n in range(1, min(os.cpu_count() or 1, blocks) + 1) if blocks % n == 0)
    size = blocks // parts * block

    def multiply(part: QuantizedArray) -> Array:
        if part.scheme != "w4a16":
            return _dot(tokens, part.values.astype(x.dtype), out_dtype)
        # Two products with halves of the inputs: putting the pairs in order would take longer.
        low, high = ((half.astype(x.dtype) - 8) for half in (part.values & 15, part.values >> 4))
        low, high = (_scaled(half, part.scales.astype(x.dtype)) for half in (low, high))
        return _dot(halves[0], low, out_dtype) + _dot(halves[1], high, out_dtype)

    def run(first: int) -> Array:
        def add(index: Array, y: Array) -> Array:
            start = index * block
            part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first + start, block), weight)
            return jax.lax.dynamic_update_slice(y, multiply(part), (0, start))

        return jax.lax.fori_loop(0, size // block, add, jnp.zeros((len(tokens), size), out_dtype))

    out = jnp.concatenate([run(part * size) for part in range(parts)], axis=-1)
    if weight.scheme != "w4a16":
        out *= weight.scales[:, 0]
    return out.reshape(*x.shape[:-1], -1)
