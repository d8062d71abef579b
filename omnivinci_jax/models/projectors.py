"""The projectors from tower features to the decoder's width (Appendix C.1; audio compression: Table 18)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.layers import Dense, conv3, layer_norm


def space_to_depth(x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 C4"]:
    """Moves each 2x2 block to one position, channels in the order (row, column, channel); pads odd sides with zeros."""
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    return rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=2, j=2)


class VisionProjector(nn.Module):
    """2x2 space-to-depth, LayerNorm and a two-layer MLP with the erf GELU, on each tile with all its scales."""

    config: OmniVinciConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "B grid grid C"]) -> Float[Array, "B tile_grid tile_grid D"]:
        """Returns the tokens of each output tile, as a map."""
        width = self.config.text.hidden_size
        x = layer_norm(1e-5, self.compute.dtype, "norm")(space_to_depth(x))
        x = Dense(width, ("embed", "mlp"), self.compute, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=False)
        return Dense(width, ("mlp", "embed"), self.compute, name="fc2")(x)


class SoundProjector(nn.Module):
    """Compresses a window's features in time, then applies a two-layer MLP with the erf GELU."""

    config: OmniVinciConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "B S C"]) -> Float[Array, "B window_tokens D"]:
        """Returns the tokens of each window; pooling by two drops the last of an odd number of features."""
        width, compression = self.config.text.hidden_size, self.config.audio_compression
        if compression == "conv":
            x = conv3(x.shape[-1], 2, self.compute.dtype, "conv")(x)
        elif compression in ("average", "max"):
            first, second = rearrange(x[:, : x.shape[1] // 2 * 2], "b (s pair) c -> pair b s c", pair=2)
            # Not x.max(axis): its gradient divides by the number of elements that equal the maximum, which is 0 if XLA
            # recomputes an element with another rounding.
            x = jnp.maximum(first, second) if compression == "max" else (first + second) / 2
        x = Dense(width, ("embed", "mlp"), self.compute, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=False)
        return Dense(width, ("mlp", "embed"), self.compute, name="fc2")(x)
