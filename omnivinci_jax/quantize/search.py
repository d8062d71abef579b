"""AWQ and SmoothQuant: scales of channels that make the output of quantized kernels close to that of the kernels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from omnivinci_jax.models.quantized import Scheme, dequantize, quantize
from omnivinci_jax.models.weights import matmul
from omnivinci_jax.quantize.calibration import Statistics

_EXPONENTS = np.arange(20) / 20
_CLIPS = 1 - np.arange(11) / 20  # of the largest absolute value


def awq_candidates(seen: Statistics) -> Float[np.ndarray, "candidates in"]:
    """Returns AWQ's scales: mean|x|^r for 20 exponents r from 0 to 0.95, with √(largest · smallest) of 1."""
    scales = np.maximum(seen.mean, 1e-4) ** _EXPONENTS[:, None]
    return scales / np.sqrt(scales.max(axis=1, keepdims=True) * scales.min(axis=1, keepdims=True))


def smooth_candidates(seen: Statistics, kernels: list[Float[np.ndarray, "in _"]]) -> Float[np.ndarray, "candidates in"]:
    """Returns SmoothQuant's scales max|x|^a / max|w|^(1 - a) for 20 exponents a from 0 to 0.95, and no scaling."""
    weights = np.max([np.abs(kernel).max(axis=1) for kernel in kernels], axis=0)
    activations, weights = np.maximum(seen.largest, 1e-5), np.maximum(weights, 1e-5)
    a = _EXPONENTS[:, None]
    return np.concatenate([np.ones((1, len(weights))), activations**a / weights ** (1 - a)])


def best_scales(
    candidates: Float[np.ndarray, "candidates in"],
    sample: Float[np.ndarray, "n in"],
    kernels: list[Float[np.ndarray, "in _"]],
    scheme: Scheme,
    group_size: int,
) -> Float[np.ndarray, " in"]:
    """Returns the candidate with the smallest squared error of the quantized products of all kernels."""
    candidates = candidates.astype(np.float32)
    errors = _errors(scheme, group_size, candidates, sample, [np.asarray(k, np.float32) for k in kernels])
    return candidates[int(np.argmin(errors))]


@partial(jax.jit, static_argnums=(0, 1))
def _errors(scheme: Scheme, group_size: int, candidates: Array, x: Array, kernels: list[Array]) -> Array:
    def error(scales: Array) -> Array:
        total = jnp.zeros(())
        for kernel in kernels:
            weight = quantize(kernel * scales[:, None], scheme, group_size)
            product = matmul(x / scales, weight, (None, None), jnp.float32)
            total += jnp.square(product - x @ kernel).sum()
        return total

    return jax.lax.map(error, candidates)


@partial(jax.jit, static_argnums=2)
def best_clip(x: Float[Array, "n in"], kernel: Float[Array, "in out"], group_size: int) -> Float[Array, "out groups"]:
    """Returns the largest absolute value of each int4 group that gives its product the smallest squared error."""
    groups = kernel.shape[0] // group_size
    inputs = x.reshape(len(x), groups, group_size)
    squares = jnp.einsum("ngi,ngj->gij", inputs, inputs)
    columns = kernel.T.reshape(kernel.shape[1], groups, group_size)
    largest = jnp.abs(columns).max(axis=-1)

    def error(ratio: Array) -> Array:
        rounded = dequantize(quantize(kernel, "w4a16", group_size, ratio * largest))
        difference = rounded.T.reshape(columns.shape) - columns
        return jnp.einsum("ogi,gij,ogj->og", difference, squares, difference)

    ratios = jnp.asarray(_CLIPS, jnp.float32)
    return ratios[jnp.argmin(jax.lax.map(error, ratios), axis=0)] * largest
