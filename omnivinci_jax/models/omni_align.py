"""OmniAlignNet (Section 2.1): one vector per clip and modality, for the contrastive loss of Equation (1).

Our reading of the text: each modality has a learned query, which is put before the tokens of a clip; three pre-norm
self-attention layers run over both, and the query's output is L2-normalised. (The other reading, self-attention over
one pooled vector, gives the query and key weights no gradient.)
"""

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from omnivinci_jax.config import OmniAlignConfig
from omnivinci_jax.models.attention import SelfAttention
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.layers import layer_norm, layer_stack
from omnivinci_jax.models.parameters import declare
from omnivinci_jax.models.sharding import constrain


class ClipEmbeddings(NamedTuple):
    """vision, audio: a unit vector for each clip; scale: factor of their products."""

    vision: Float32[Array, "G K D"]
    audio: Float32[Array, "G K D"]
    scale: Float32[Array, ""]


class OmniAlignNet(nn.Module):
    """Clip embeddings of both modalities, each with its own query and layers."""

    config: OmniAlignConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        vision: Float[Array, "G V D"],
        vision_clip: Int[Array, "G V"],
        audio: Float[Array, "G A D"],
        audio_clip: Int[Array, "G A"],
        num_clips: int,
    ) -> ClipEmbeddings:
        """Embeds the clips 1 … num_clips of each group.

        A clip without tokens gets the output of the query alone; the scale is 1 unless `learned_scale` is set.
        """
        scale = jnp.ones(())
        if self.config.learned_scale:
            # As CLIP: the initial temperature is 0.07, and its logarithm is learned.
            init = declare(nn.initializers.constant(-math.log(0.07)), ())
            scale = jnp.exp(self.param("log_scale", init, ()))
        modality = partial(ClipQuery, self.config, self.compute)
        vision_clips = modality(name="vision")(vision, vision_clip, num_clips)
        audio_clips = modality(name="audio")(audio, audio_clip, num_clips)
        return ClipEmbeddings(vision_clips, audio_clips, scale)


class ClipQuery(nn.Module):
    """Clip embeddings of one modality.

    One attention serves all clips of a group: K copies of the query, then the tokens; each attends only to
    its own clip, as if clips were embedded one at a time.
    """

    config: OmniAlignConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "G V D"], clip_ids: Int[Array, "G V"], num_clips: int
    ) -> Float32[Array, "G K D"]:
        """Returns the query's output for each clip, L2-normalised."""
        groups, _, width = tokens.shape
        init = declare(nn.initializers.normal(0.02), (None, "norm"))
        query = self.param("query", init, (1, width)).astype(tokens.dtype)
        # `context` shards the length and must divide it.
        padding = -(num_clips + tokens.shape[1]) % jax.sharding.get_abstract_mesh().shape.get("context", 1)
        padding = ((0, 0), (0, padding))
        x = jnp.concatenate([jnp.broadcast_to(query, (groups, num_clips, width)), tokens], axis=1)
        x = jnp.pad(x, (*padding, (0, 0)))
        query_ids = jnp.broadcast_to(jnp.arange(1, num_clips + 1), (groups, num_clips))
        segment_ids = jnp.pad(jnp.concatenate([query_ids, clip_ids], axis=1), padding)
        layers = layer_stack(AlignLayer, self.config.num_layers, self.compute.decoder_remat)
        x, _ = layers(self.config.num_heads, self.compute, name="layers")(x, segment_ids)
        x = x[:, :num_clips].astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))


class AlignLayer(nn.Module):
    """Self-attention on the normalised residual stream."""

    num_heads: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "G L D"], segment_ids: Int[Array, "G L"]) -> tuple[Float[Array, "G L D"], None]:
        """Attends within each clip."""
        x = constrain(x, "group", "length")
        y = layer_norm(1e-5, self.compute.dtype, "norm")(x)
        return x + SelfAttention(self.num_heads, "group", self.compute, name="self_attn")(y, segment_ids), None
