"""OmniVinci: the whole forward pass.

    tiles   [G, N, P, P, 3] ─ SigLIP ─ Dynamic-S2 ─ projector ─ pools ─┐
    windows [G, W, F, M]    ─ AF-Whisper ─ projector ──────────────────┤─ time embedding ─┐
    tokens  [G, R, T]       ─ embedding ───────────────────────────────│─────────────────── slots ─ Qwen2.5 ─ hidden
                                                                       └─ OmniAlignNet ─ clip embeddings

Which token goes where was decided on the host (sequence/): Temporal Embedding Grouping is an order of slots, and here
all modalities meet in one gather.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.models.af_whisper import AFWhisperTower
from omnivinci_jax.models.attention_kernels import Implementation
from omnivinci_jax.models.cached_attention import LayerCache
from omnivinci_jax.models.dynamic_s2 import merge_scales
from omnivinci_jax.models.layers import Remat, rematted
from omnivinci_jax.models.omni_align import ClipEmbeddings, OmniAlignNet
from omnivinci_jax.models.projectors import SoundProjector, VisionProjector
from omnivinci_jax.models.qwen2 import Qwen2
from omnivinci_jax.models.siglip import SiglipTower
from omnivinci_jax.models.time_embedding import TimeEmbedding
from omnivinci_jax.sequence.batch import TEXT, VISION, Batch


class Output(NamedTuple):
    """hidden: the decoder's states after its final norm; clips: what OmniAlignNet's loss compares."""

    hidden: Float[Array, "G R T D"]
    clips: ClipEmbeddings


class OmniVinci(nn.Module):
    """The model. Letters of shapes are those of sequence/batch.py; D is the decoder's width.

    dtype: what is computed in; parameters are float32.
    tower_remat, decoder_remat: what the backward pass recomputes (models/layers.py).
    attention: what computes it (models/attention_kernels.py).
    """

    config: OmniVinciConfig
    dtype: DTypeLike = jnp.float32
    tower_remat: Remat = "none"
    decoder_remat: Remat = "none"
    attention: Implementation = "xla"

    def setup(self):
        """The parts, under the names they have in the parameter tree."""
        config = self.config
        self.vision_tower = SiglipTower(config.vision, self.dtype, self.tower_remat, self.attention)
        self.sound_tower = AFWhisperTower(config.audio, self.dtype, self.tower_remat, self.attention)
        self.mm_projector = VisionProjector(config, self.dtype)
        self.sound_mm_projector = SoundProjector(config, self.dtype)
        self.video_time = TimeEmbedding(config.video_time, self.dtype)
        self.sound_time = TimeEmbedding(config.sound_time, self.dtype)
        self.omni_align = OmniAlignNet(config.omni_align, self.dtype, self.decoder_remat, self.attention)
        self.llm = Qwen2(config.text, self.dtype, self.decoder_remat, self.attention)

    def __call__(self, batch: Batch) -> Output:
        """Hidden states of every slot, and the clip embeddings of every group."""
        vision, audio = self.encode(batch)
        clips = self.align(batch, vision, audio)
        x = self.fill_slots(batch, vision, audio)
        positions, segment_ids = (rearrange(a, "g r t -> (g r) t") for a in (batch.positions, batch.segment_ids))
        hidden = self.decode(x, positions, segment_ids)
        if self.is_initializing():
            self.logits(hidden)
        return Output(hidden.reshape(*batch.tokens.shape, -1), clips)

    def align(self, batch: Batch, vision: Float[Array, "G V D"], audio: Float[Array, "G A D"]) -> ClipEmbeddings:
        """What OmniAlignNet makes of the projectors' output; time enters after it (Section 2.1)."""
        return self.omni_align(vision, batch.vision_clip, audio, batch.audio_clip, batch.clip_source.shape[-1])

    def embed_clips(self, batch: Batch) -> ClipEmbeddings:
        """What the contrastive loss compares, without the decoder."""
        return self.align(batch, *self.encode(batch))

    def encode(self, batch: Batch) -> tuple[Float[Array, "G V D"], Float[Array, "G A D"]]:
        """Vision and audio tokens of every group, before time enters them.

        Vision tokens are those of each pool in turn, by frame group, then row by row; audio tokens go by window.
        """
        return self.encode_tiles(batch), self.encode_windows(batch.windows)

    def encode_tiles(self, batch: Batch) -> Float[Array, "G V D"]:
        """The vision tokens of `encode`; reads no other media field than tiles, s2_* and frame_groups."""
        x = _constrain(rearrange(batch.tiles, "g n ... -> (g n) ..."), "media")
        x = _constrain(self.vision_tower(x), "media")
        return rematted(OmniVinci.pool_tiles, self.tower_remat)(self, x, batch)

    def pool_tiles(self, x: Float[Array, "G*N S C"], batch: Batch) -> Float[Array, "G V D"]:
        """Vision tokens from the tower's features: scales merged, projected, pooled in time."""
        config, groups = self.config, len(batch.tiles)
        x = rearrange(x, "(g n) (h w) c -> g n h w c", g=groups, h=config.vision.grid)
        x = _constrain(x, "group")  # a tile's scales may be anywhere in its group
        x = jax.vmap(lambda *arrays: merge_scales(*arrays, config.s2_sides))(x, batch.s2_sources, batch.s2_block)
        x = rearrange(_constrain(x, "group", "item"), "g n h w c -> (g n) h w c")
        x = self.mm_projector(_constrain(x, "media"))
        x = _constrain(rearrange(_constrain(x, "media"), "(g n) h w d -> g n h w d", g=groups), "group")
        pools = zip(config.vision_pools, batch.frame_groups, strict=True)
        pooled = [
            jax.vmap(lambda x, members, p=pool: pool_frames(x, members, p))(x, members) for pool, members in pools
        ]
        return jnp.concatenate(pooled, axis=1)

    def encode_windows(self, windows: Float[Array, "G W F M"]) -> Float[Array, "G A D"]:
        """The audio tokens of `encode`."""
        x = _constrain(rearrange(windows, "g w f m -> (g w) f m"), "media")
        x = _constrain(self.sound_mm_projector(_constrain(self.sound_tower(x), "media")), "media")
        return _constrain(rearrange(x, "(g w) s d -> g (w s) d", g=len(windows)), "group")

    def timed_vision(self, batch: Batch) -> Float[Array, "G V D"]:
        """Vision tokens with their times in them, as slots take them."""
        return self.video_time(self.encode_tiles(batch), batch.vision_times, batch.vision_angles)

    def timed_audio(self, batch: Batch) -> Float[Array, "G A D"]:
        """Audio tokens with their times in them, as slots take them."""
        return self.sound_time(self.encode_windows(batch.windows), batch.audio_times, batch.audio_angles)

    def fill_slots(
        self, batch: Batch, vision: Float[Array, "G V D"], audio: Float[Array, "G A D"]
    ) -> Float[Array, "G*R T D"]:
        """What the decoder reads: text slots' embeddings, media slots' tokens of the group's pool with time in them."""
        vision = self.video_time(vision, batch.vision_times, batch.vision_angles)
        audio = self.sound_time(audio, batch.audio_times, batch.audio_angles)
        text, is_text = self.embed_text(batch.tokens), batch.slot_kind == TEXT
        # Text slots point at a row of zeros past the pool: an index must be somewhere, and a pool may be empty.
        pool = jnp.pad(jnp.concatenate([vision, audio], axis=1), ((0, 0), (0, 1), (0, 0)))
        index = batch.slot_index + jnp.where(batch.slot_kind == VISION, 0, vision.shape[1])
        index = jnp.where(is_text, pool.shape[1] - 1, index)
        media = jax.vmap(lambda tokens, slots: jnp.take(tokens, slots, axis=0))(pool, index)  # within a group
        return rearrange(jnp.where(is_text[..., None], text, media), "g r t d -> (g r) t d")

    def embed(self, batch: Batch) -> Float[Array, "G*R T D"]:
        """What the decoder reads, without what training alone needs."""
        return self.fill_slots(batch, *self.encode(batch))

    def embed_text(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Embeddings of text."""
        return self.llm.embed(tokens)

    def decode(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm; a slot sees the earlier slots of its own segment."""
        return self.llm(x, positions, segment_ids)

    def extend(
        self,
        x: Float[Array, "R T D"],
        layers: tuple[dict[str, Any], ...],
        cache: tuple[LayerCache, ...],
        lengths: Int[Array, " R"],
        rows: Int[Array, " R"] | None = None,
    ) -> tuple[Float[Array, "R T D"], tuple[LayerCache, ...]]:
        """`decode` of the next T slots of R rows, whose earlier slots are in a cache; see Qwen2.extend."""
        return self.llm.extend(x, layers, cache, lengths, rows)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch padded_vocab"]:
        """Logits over the padded vocabulary, in float32."""
        return self.llm.logits(hidden)

    def head_params(self, params: dict) -> dict:
        """The parameters that `logits` needs."""
        head = "embed_tokens" if self.config.text.tie_word_embeddings else "lm_head"
        return {"llm": {head: params["llm"][head]}}


def _constrain(x: Array, *axes: str) -> Array:
    """`x` with its first dimensions shared over devices by these logical axes, and the others whole."""
    return nn.with_logical_constraint(x, (*axes, *[None] * (x.ndim - len(axes))))


def pool_frames(
    frames: Float[Array, "N h w D"], members: Int[Array, "F t"], pool: tuple[int, int, int]
) -> Float[Array, "F*tokens D"]:
    """Averages a video's frames over blocks of `pool` = (time, height, width).

    Args:
        frames: every output tile, projected.
        members: which of them are averaged together in time, -1 where one is missing. As in the released code, a
            missing frame counts as one number: the mean over all elements of the frames present.
        pool: its time is t.
    """
    _, height, width = pool
    x = reduce(frames, "n (h i) (w j) d -> n (h w) d", "mean", i=height, j=width)
    present = members >= 0
    total = jnp.where(present[..., None, None], x[members], 0).sum(axis=1)
    count = present.sum(axis=1)[:, None, None]
    mean = total.mean(axis=(1, 2), keepdims=True) / jnp.maximum(count, 1)
    averages = (total + (members.shape[1] - count) * mean) / members.shape[1]
    return rearrange(averages, "f s d -> (f s) d").astype(frames.dtype)
