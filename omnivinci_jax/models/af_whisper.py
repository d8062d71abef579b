"""The sound tower: AF-Whisper, which has the shape of the Qwen2-Audio encoder (Appendix C.1, D.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jaxtyping import Array, Float, Float32

from omnivinci_jax.config import AFWhisperConfig
from omnivinci_jax.models.attention import SelfAttention
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.layers import Dense, Embedding, conv3, layer_norm, layer_stack
from omnivinci_jax.models.sharding import constrain

# The output of the convolutions is added to sinusoids of rms 0.7. With the usual variance of 1 / fan-in, the log-mel
# contributes 2 % of the variance, and a tower trained from scratch sees little but positions for a long time.
INIT = nn.initializers.variance_scaling(6.0, "fan_in", "truncated_normal")


class AFWhisperTower(nn.Module):
    """Maps log-mel windows to features: two convolutions, sinusoidal positions, pre-norm layers, mean of time pairs.

    The position table is a parameter, as in the published checkpoint, but gets no gradient.
    """

    config: AFWhisperConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, windows: Float[Array, "B _ _"], layers: tuple[int, int] | None = None) -> Float[Array, "B _ C"]:
        """Returns S = frames / 4 features of each log-mel window, [B, S, C] of [B, frames, mels].

        `layers`: run only this range, whose parameters alone are given. A range that does not start with the first
        layer reads what the range before returned instead of `windows`.
        """
        first, last = layers or (0, self.config.encoder_layers)
        x = windows if first else self._convolve(windows)
        stack = layer_stack(AFWhisperLayer, last - first, self.compute.tower_remat)
        x, _ = stack(self.config, self.compute, name="layers")(x)
        if last < self.config.encoder_layers:
            return x
        x = reduce(x, "b (s pair) c -> b s c", "mean", pair=2)
        return layer_norm(1e-5, self.compute.dtype, "layer_norm")(x)

    def _convolve(self, windows: Float32[Array, "B frames mels"]) -> Float[Array, "B positions C"]:
        config = self.config
        x = jax.nn.gelu(conv3(config.d_model, 1, self.compute.dtype, "conv1", INIT)(windows), approximate=False)
        x = jax.nn.gelu(conv3(config.d_model, 2, self.compute.dtype, "conv2", INIT)(x), approximate=False)
        positions = Embedding(
            config.max_source_positions,
            config.d_model,
            ("position", "embed"),
            self.compute,
            _sinusoids,
            name="embed_positions",
        )
        return x + jax.lax.stop_gradient(positions.table())


class AFWhisperLayer(nn.Module):
    """A pre-norm transformer layer with the erf GELU."""

    config: AFWhisperConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "B S C"]) -> tuple[Float[Array, "B S C"], None]:
        """Applies self-attention, then the MLP, each on the normalised residual stream."""
        config = self.config
        x = constrain(x, "media")
        y = layer_norm(1e-5, self.compute.dtype, "self_attn_layer_norm")(x)
        heads = config.encoder_attention_heads
        x = x + SelfAttention(heads, "media", self.compute, key_bias=False, name="self_attn")(y)
        y = layer_norm(1e-5, self.compute.dtype, "final_layer_norm")(x)
        y = Dense(config.encoder_ffn_dim, ("embed", "mlp"), self.compute, name="fc1")(y)
        y = jax.nn.gelu(y, approximate=False)
        return x + Dense(config.d_model, ("mlp", "embed"), self.compute, name="fc2")(y), None


def _sinusoids(_key: Array, shape: tuple[int, int]) -> Float32[Array, "positions channels"]:
    """Returns Whisper's table: sines, then cosines, of position · 10000^(-i / (C/2 - 1))."""
    positions, channels = shape
    frequencies = np.exp(-np.log(10_000) / (channels // 2 - 1) * np.arange(channels // 2))
    angles = np.arange(positions)[:, None] * frequencies
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)
