"""OmniVinci: the whole forward pass.

    tiles   [G, N, P, P, 3] ─ SigLIP ─ Dynamic-S2 ─ projector ─ pools ─┐
    windows [G, W, F, M]    ─ AF-Whisper ─ projector ──────────────────┤─ time embedding ─┐
    tokens  [G, R, T]       ─ embedding ───────────────────────────────│─────────────────── slots ─ Qwen2.5 ─ hidden
                                                                       └─ OmniAlignNet ─ clip embeddings

The host decides which token goes where (sequence/): Temporal Embedding Grouping is an order of slots, and one gather
here puts the tokens of all modalities into their slots.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jaxtyping import Array, Float, Int

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.models.af_whisper import AFWhisperTower
from omnivinci_jax.models.cached_attention import LayerCache
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.dynamic_s2 import merge_scales
from omnivinci_jax.models.layers import rematted
from omnivinci_jax.models.omni_align import ClipEmbeddings, OmniAlignNet
from omnivinci_jax.models.projectors import SoundProjector, VisionProjector
from omnivinci_jax.models.qwen2 import Qwen2
from omnivinci_jax.models.sharding import constrain
from omnivinci_jax.models.siglip import SiglipTower
from omnivinci_jax.models.time_embedding import TimeEmbedding
from omnivinci_jax.sequence.batch import TEXT, VISION, Batch


class Output(NamedTuple):
    """hidden: the decoder's states after its final norm; clips: embeddings for the contrastive loss."""

    hidden: Float[Array, "G R T D"]
    clips: ClipEmbeddings


class OmniVinci(nn.Module):
    """The model. sequence/batch.py explains the shape letters; D is the decoder's width.

    compute: type, rematerialization and attention kernel of all modules.
    """

    config: OmniVinciConfig
    compute: Compute = Compute()

    def setup(self):
        """Creates the parts, under their names in the parameter tree."""
        config, compute = self.config, self.compute
        self.vision_tower = SiglipTower(config.vision, compute)
        self.sound_tower = AFWhisperTower(config.audio, compute)
        self.mm_projector = VisionProjector(config, compute)
        self.sound_mm_projector = SoundProjector(config, compute)
        self.video_time = TimeEmbedding(config.video_time, compute)
        self.sound_time = TimeEmbedding(config.sound_time, compute)
        self.omni_align = OmniAlignNet(config.omni_align, compute)
        self.llm = Qwen2(config.text, compute)

    def __call__(self, batch: Batch) -> Output:
        """Returns the hidden states of every slot, and the clip embeddings of every group."""
        vision, audio = self.encode(batch)
        clips = self.align(batch, vision, audio)
        x = self.fill_slots(batch, vision, audio)
        positions, segment_ids = (rearrange(a, "g r t -> (g r) t") for a in (batch.positions, batch.segment_ids))
        hidden = self.decode(x, positions, segment_ids)
        if self.is_initializing():
            self.logits(hidden)
        return Output(hidden.reshape(*batch.tokens.shape, -1), clips)

    def align(self, batch: Batch, vision: Float[Array, "G V D"], audio: Float[Array, "G A D"]) -> ClipEmbeddings:
        """Computes clip embeddings from the projectors' output, before time embedding (Section 2.1)."""
        return self.omni_align(vision, batch.vision_clip, audio, batch.audio_clip, batch.clip_source.shape[-1])

    def embed_clips(self, batch: Batch) -> ClipEmbeddings:
        """Computes clip embeddings for the contrastive loss, without running the decoder."""
        return self.align(batch, *self.encode(batch))

    def encode(self, batch: Batch) -> tuple[Float[Array, "G V D"], Float[Array, "G A D"]]:
        """Returns vision and audio tokens of every group, before time embedding.

        Vision tokens are ordered by pool, then frame group, then row by row; audio tokens by window.
        """
        return self.encode_tiles(batch), self.encode_windows(batch.windows)

    def encode_tiles(self, batch: Batch) -> Float[Array, "G V D"]:
        """Returns the vision tokens of `encode`; reads only the media fields tiles, s2_* and frame_groups."""
        x = constrain(rearrange(batch.tiles, "g n ... -> (g n) ..."), "media")
        if x.ndim == 4:  # pixels
            x = constrain(self.vision_tower(x), "media")
        return rematted(OmniVinci.pool_tiles, self.compute.tower_remat)(self, x, batch)

    def pool_tiles(self, x: Float[Array, "tiles S C"], batch: Batch) -> Float[Array, "G V D"]:
        """Merges the scales of the tower's features, projects them and pools them in time."""
        config, groups = self.config, len(batch.tiles)
        x = rearrange(x, "(g n) (h w) c -> g n h w c", g=groups, h=config.vision.grid)
        x = constrain(x, "group")  # the scales of a tile may be on any device of its group
        x = jax.vmap(partial(merge_scales, sides=config.s2_sides))(x, batch.s2_sources, batch.s2_block)
        x = rearrange(constrain(x, "group", "item"), "g n h w c -> (g n) h w c")
        x = self.mm_projector(constrain(x, "media"))
        x = constrain(rearrange(constrain(x, "media"), "(g n) h w d -> g n h w d", g=groups), "group")
        pools = zip(config.vision_pools, batch.frame_groups, strict=True)
        pooled = [
            jax.vmap(lambda x, members, p=pool: pool_frames(x, members, p))(x, members) for pool, members in pools
        ]
        return jnp.concatenate(pooled, axis=1)

    def encode_windows(self, windows: Float[Array, "G W frames C"]) -> Float[Array, "G A D"]:
        """Returns the audio tokens of `encode`."""
        x = constrain(rearrange(windows, "g w ... -> (g w) ..."), "media")
        if x.shape[1] == self.config.audio.window_frames:  # log-mel; of features there are a quarter
            x = self.sound_tower(x)
        return self._project_sound(x, len(windows))

    def _project_sound(self, features: Float[Array, "W S C"], groups: int) -> Float[Array, "G A D"]:
        x = constrain(self.sound_mm_projector(constrain(features, "media")), "media")
        return constrain(rearrange(x, "(g w) s d -> g (w s) d", g=groups), "group")

    def timed_vision(self, batch: Batch) -> Float[Array, "G V D"]:
        """Returns vision tokens after time embedding, ready for their slots."""
        return self.video_time(self.encode_tiles(batch), batch.vision_times, batch.vision_angles)

    def timed_audio(self, batch: Batch) -> Float[Array, "G A D"]:
        """Returns audio tokens after time embedding, ready for their slots."""
        return self.sound_time(self.encode_windows(batch.windows), batch.audio_times, batch.audio_angles)

    def begin_audio(self, batch: Batch, layers: int) -> Float[Array, "W positions C"]:
        """Runs the first layers of the sound tower, whose parameters alone are given; `end_audio` does the rest."""
        x = constrain(rearrange(batch.windows, "g w f m -> (g w) f m"), "media")
        return constrain(self.sound_tower(x, (0, layers)), "media")

    def end_audio(self, x: Float[Array, "W positions C"], batch: Batch, layers: int) -> Float[Array, "G A D"]:
        """Returns what `timed_audio` does from the output of the first layers; the others' parameters are given."""
        features = self.sound_tower(x, (layers, self.config.audio.encoder_layers))
        audio = self._project_sound(features, len(batch.windows))
        return self.sound_time(audio, batch.audio_times, batch.audio_angles)

    def fill_slots(
        self, batch: Batch, vision: Float[Array, "G V D"], audio: Float[Array, "G A D"]
    ) -> Float[Array, "rows T D"]:
        """Returns the decoder's input: text embeddings and the group's time-embedded media tokens, in their slots."""
        vision = self.video_time(vision, batch.vision_times, batch.vision_angles)
        audio = self.sound_time(audio, batch.audio_times, batch.audio_angles)
        text, is_text = self.embed_text(batch.tokens), batch.slot_kind == TEXT
        # Text slots point at a row of zeros after the pool: every index must be valid, and a pool may be empty.
        pool = jnp.pad(jnp.concatenate([vision, audio], axis=1), ((0, 0), (0, 1), (0, 0)))
        index = batch.slot_index + jnp.where(batch.slot_kind == VISION, 0, vision.shape[1])
        index = jnp.where(is_text, pool.shape[1] - 1, index)
        media = jax.vmap(lambda tokens, slots: jnp.take(tokens, slots, axis=0))(pool, index)  # within a group
        return rearrange(jnp.where(is_text[..., None], text, media), "g r t d -> (g r) t d")

    def embed(self, batch: Batch) -> Float[Array, "rows T D"]:
        """Returns the decoder's input; skips the clip embeddings, which only training needs."""
        return self.fill_slots(batch, *self.encode(batch))

    def embed_text(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Embeds text tokens."""
        return self.llm.embed(tokens)

    def decode(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Returns hidden states after the final norm; a slot attends to the earlier slots of its own segment."""
        return self.llm(x, positions, segment_ids)

    def extend(
        self,
        x: Float[Array, "R T D"],
        layers: tuple[dict[str, Any], ...],
        cache: tuple[LayerCache, ...],
        lengths: Int[Array, " R"],
        rows: Int[Array, " R"] | None = None,
    ) -> tuple[Float[Array, "R T D"], tuple[LayerCache, ...]]:
        """Decodes the next T slots of R rows whose earlier slots are cached; see Qwen2.extend."""
        return self.llm.extend(x, layers, cache, lengths, rows)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch padded_vocab"]:
        """Returns logits over the padded vocabulary, in float32."""
        return self.llm.logits(hidden)

    def head_params(self, params: dict) -> dict:
        """Returns the parameters that `logits` needs."""
        head = "embed_tokens" if self.config.text.tie_word_embeddings else "lm_head"
        return {"llm": {head: params["llm"][head]}}


def pool_frames(
    frames: Float[Array, "N h w D"], members: Int[Array, "F t"], pool: tuple[int, int, int]
) -> Float[Array, "pooled D"]:
    """Averages a video's frames over blocks of `pool` = (time, height, width).

    Args:
        frames: all output tiles, projected.
        members: indices of the frames that are averaged together in time, -1 where a frame is missing. As in the
            released code, a missing frame counts as a constant: the mean over all elements of the frames present.
        pool: size of a block; its time is t.
    """
    _, height, width = pool
    x = reduce(frames, "n (h i) (w j) d -> n (h w) d", "mean", i=height, j=width)
    present = members >= 0
    total = jnp.where(present[..., None, None], x[members], 0).sum(axis=1)
    count = present.sum(axis=1)[:, None, None]
    mean = total.mean(axis=(1, 2), keepdims=True) / jnp.maximum(count, 1)
    averages = (total + (members.shape[1] - count) * mean) / members.shape[1]
    return rearrange(averages, "f s d -> (f s) d").astype(frames.dtype)
