"""Absolute time in vision and audio tokens: Constrained Rotary Time Embedding and the schemes compared with it.

Section 2.1, Equations (4) and (5), Table 1, and the other schemes of released configurations. Under every scheme a time
of 0 leaves a token unchanged; images, and sounds and videos without time, have time 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64

from omnivinci_jax.config import TimeEmbeddingConfig
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.layers import Dense, Embedding


class TimeEmbedding(nn.Module):
    """Adds times to tokens by the scheme of `config`; only the scheme `learned` has parameters."""

    config: TimeEmbeddingConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch D"],
        times: Float32[Array, "*batch"],
        angles: Float32[Array, "*batch C"] | None = None,
    ) -> Float[Array, "*batch D"]:
        """Embeds `times` (seconds); `angles` come from the host for the schemes with `config.host_angles`."""
        scheme = self.config.scheme
        if scheme == "none":
            return x
        if scheme == "learned":
            return x + jnp.where(times[..., None] == 0, 0, self._learned(times, x.shape[-1]))
        if not self.config.host_angles:
            angles = time_angles(times, frequencies(self.config))
        assert angles is not None  # the batch has them
        return rotate(x, angles)

    def _learned(self, times: Float32[Array, "*batch"], width: int) -> Float[Array, "*batch D"]:
        """Returns a learned vector per whole second, through an MLP (Section 4.1.1) that is zero at initialisation."""
        assert self.config.max_time is not None  # TimeEmbeddingConfig checks it
        seconds = int(self.config.max_time)
        nearest = jnp.clip(jnp.round(times), 0, seconds).astype(jnp.int32)
        y = Embedding(seconds + 1, width, (None, "embed"), self.compute, name="seconds")(nearest)
        y = Dense(width, ("embed", "mlp"), self.compute, name="fc1")(y)
        y = jax.nn.gelu(y, approximate=False)
        return Dense(width, ("mlp", "embed"), self.compute, kernel_init=nn.initializers.zeros, name="fc2")(y)


def frequencies(config: TimeEmbeddingConfig) -> Float64[np.ndarray, " C"]:
    """Returns the turns per second (ω / 2π) of each rotated channel.

    crte: 1 / (T_max·θ^(i/C)), i = 0 … C-1, Equation (4). longest: T_max^(-i/(C-1)). rote: 10000^(-2j/C) / 2π for each
    plane j. With `pair_angles` both channels of a plane turn like its first.
    """
    channels = config.channels
    i = np.arange(channels)
    if config.scheme == "rote":
        return 10_000.0 ** -(2 * (i // 2) / channels) / (2 * np.pi)
    if config.pair_angles:
        i = i // 2 * 2
    assert config.max_time is not None  # TimeEmbeddingConfig checks it
    if config.scheme == "crte":
        return 1 / (config.max_time * config.theta ** (i / channels))
    return config.max_time ** -(i / (channels - 1))


def time_angles(times: Float32[Array, "*batch"], frequency: Float64[np.ndarray, " C"]) -> Float32[Array, "*batch C"]:
    """Returns the angles 2π·(times · frequency modulo 1) in float32, within 2e-6 of float64 for times up to 4096 s.

    The error of a plain product grows with the number of turns (4e-4 for RoTE at an hour). So whole seconds are
    multiplied separately by the 12 leading bits of the frequency: that product, and its remainder modulo 1, are exact.
    """
    leading = _round_bits(frequency, 12)
    seconds = jnp.floor(times)[..., None]
    rest = times[..., None] - seconds
    turns = (seconds * jnp.asarray(leading, jnp.float32)) % 1
    turns += (seconds * jnp.asarray(frequency - leading, jnp.float32)) % 1
    turns += rest * jnp.asarray(frequency, jnp.float32)
    return 2 * jnp.pi * (turns % 1)


def rotate(x: Float[Array, "*batch D"], angles: Float32[Array, "*batch C"]) -> Float[Array, "*batch D"]:
    """Applies Equation (5) to the first C channels: x⊙cos + RotateHalf(x)⊙sin in float32, RotateHalf = (-x2, x1, …)."""
    channels = angles.shape[-1]
    head = x[..., :channels].astype(jnp.float32)
    half = jnp.stack([-head[..., 1::2], head[..., 0::2]], axis=-1).reshape(head.shape)
    head = head * jnp.cos(angles) + half * jnp.sin(angles)
    return jnp.concatenate([head.astype(x.dtype), x[..., channels:]], axis=-1)


def _round_bits(x: Float64[np.ndarray, " C"], bits: int) -> Float64[np.ndarray, " C"]:
    """Rounds the significand of `x` to `bits` bits."""
    significand, exponent = np.frexp(x)
    return np.ldexp(np.round(np.ldexp(significand, bits)), exponent - bits)
