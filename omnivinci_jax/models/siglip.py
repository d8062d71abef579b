"""The vision tower: SigLIP up to its second-to-last layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Float32, UInt8

from omnivinci_jax.config import SiglipConfig
from omnivinci_jax.models.attention import SelfAttention
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.layers import Dense, Embedding, layer_norm, layer_stack
from omnivinci_jax.models.sharding import constrain


class SiglipTower(nn.Module):
    """Maps tiles to features; normalises pixels on the device, so that tiles are transferred as bytes.

    The features are the output of the second-to-last layer, without a final norm. The last layer and the final norm are
    never computed; they have parameters because exports need them.
    """

    config: SiglipConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, tiles: UInt8[Array, "B P P 3"] | Float32[Array, "B P P 3"]) -> Float[Array, "B S C"]:
        """Returns the features of each patch, row by row."""
        config = self.config
        x = (tiles.astype(jnp.float32) / 255 - 0.5) / 0.5
        x = rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=config.patch_size, q=config.patch_size)
        x = Dense(config.hidden_size, (None, "embed"), self.compute, name="patch_embedding")(x)
        positions = Embedding(
            config.grid**2, config.hidden_size, ("position", "embed"), self.compute, name="position_embedding"
        )
        x = x + positions.table()
        layers = layer_stack(SiglipLayer, config.num_hidden_layers - 1, self.compute.tower_remat)
        x, _ = layers(config, self.compute, name="layers")(x)
        if self.is_initializing():
            SiglipLayer(config, self.compute, name="last_layer")(x)
            layer_norm(config.layer_norm_eps, self.compute.dtype, "post_layernorm")(x)
        return x


class SiglipLayer(nn.Module):
    """A pre-norm transformer layer."""

    config: SiglipConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "B S C"]) -> tuple[Float[Array, "B S C"], None]:
        """Applies self-attention, then the MLP, each on the normalised residual stream."""
        config = self.config
        x = constrain(x, "media")
        y = layer_norm(config.layer_norm_eps, self.compute.dtype, "layer_norm1")(x)
        heads = config.num_attention_heads
        x = x + SelfAttention(heads, "media", self.compute, name="self_attn")(y)
        y = layer_norm(config.layer_norm_eps, self.compute.dtype, "layer_norm2")(x)
        return x + SiglipMLP(config, self.compute, name="mlp")(y), None


class SiglipMLP(nn.Module):
    """Two dense layers with the tanh GELU between."""

    config: SiglipConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "B S C"]) -> Float[Array, "B S C"]:
        """Widens to the intermediate size and back."""
        x = Dense(self.config.intermediate_size, ("embed", "mlp"), self.compute, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=True)
        return Dense(self.config.hidden_size, ("mlp", "embed"), self.compute, name="fc2")(x)
