"""OmniAlignNet (Section 2.1): one vector a clip and modality, for the contrastive loss of Equation (1).

Read so: the modality's learned query is put before the tokens of a clip, three pre-norm self-attention layers run over
both, and the query's output is L2-normalised. (Self-attention over one pooled vector, as the text may also be read,
would leave its query and key weights without gradient.)
"""

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from omnivinci_jax.config import OmniAlignConfig
from omnivinci_jax.models.attention import SelfAttention
from omnivinci_jax.models.attention_kernels import Implementation
from omnivinci_jax.models.layers import Remat, layer_norm, layer_stack


class ClipEmbeddings(NamedTuple):
    """vision, audio: a vector of length 1 for each clip; scale: what their products are multiplied with."""

    vision: Float32[Array, "G K D"]
    audio: Float32[Array, "G K D"]
    scale: Float32[Array, ""]


class OmniAlignNet(nn.Module):
    """Both modalities, each with a query and layers of its own."""

    config: OmniAlignConfig
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"
    attention: Implementation = "xla"

    @nn.compact
    def __call__(
        self,
        vision: Float[Array, "G V D"],
        vision_clip: Int[Array, "G V"],
        audio: Float[Array, "G A D"],
        audio_clip: Int[Array, "G A"],
        num_clips: int,
    ) -> ClipEmbeddings:
        """Vision and audio vectors of the clips 1 … num_clips of each group, and the scale of their products.

        A clip without tokens gets its query's own output; the scale is 1 unless the configuration has it learned.
        """
        scale = jnp.ones(())
        if self.config.learned_scale:
            # CLIP's: a temperature of 0.07 at the start, learned as a logarithm.
            init = nn.with_logical_partitioning(nn.initializers.constant(-math.log(0.07)), ())
            scale = jnp.exp(self.param("log_scale", init, ()))
        modality = partial(ClipQuery, self.config, self.dtype, self.remat, self.attention)
        vision_clips = modality(name="vision")(vision, vision_clip, num_clips)
        audio_clips = modality(name="audio")(audio, audio_clip, num_clips)
        return ClipEmbeddings(vision_clips, audio_clips, scale)


class ClipQuery(nn.Module):
    """One modality.

    All clips of a group go through one attention: K copies of the query, then the tokens, where each sees its own clip
    alone. This equals one clip at a time.
    """

    config: OmniAlignConfig
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"
    attention: Implementation = "xla"

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "G V D"], clip_ids: Int[Array, "G V"], num_clips: int
    ) -> Float32[Array, "G K D"]:
        """The query's output for each clip, of length 1."""
        groups, _, width = tokens.shape
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "norm"))
        query = self.param("query", init, (1, width)).astype(tokens.dtype)
        # The length is shared over `context`, which must divide it.
        padding = -(num_clips + tokens.shape[1]) % jax.sharding.get_abstract_mesh().shape.get("context", 1)
        padding = ((0, 0), (0, padding))
        x = jnp.concatenate([jnp.broadcast_to(query, (groups, num_clips, width)), tokens], axis=1)
        x = jnp.pad(x, (*padding, (0, 0)))
        query_ids = jnp.broadcast_to(jnp.arange(1, num_clips + 1), (groups, num_clips))
        segment_ids = jnp.pad(jnp.concatenate([query_ids, clip_ids], axis=1), padding)
        layers = layer_stack(AlignLayer, self.config.num_layers, self.remat)
        x, _ = layers(self.config.num_heads, self.dtype, self.attention, name="layers")(x, segment_ids)
        x = x[:, :num_clips].astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))


class AlignLayer(nn.Module):
    """Self-attention on the norm of the residual stream."""

    num_heads: int
    dtype: DTypeLike = jnp.float32
    attention: Implementation = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "G L D"], segment_ids: Int[Array, "G L"]) -> tuple[Float[Array, "G L D"], None]:
        """Attends within each clip."""
        x = nn.with_logical_constraint(x, ("group", "length", None))
        y = layer_norm(1e-5, self.dtype, "norm")(x)
        attend = SelfAttention(self.num_heads, "group", dtype=self.dtype, attention=self.attention, name="self_attn")
        return x + attend(y, segment_ids), None
