"""The supervised loss: next-token cross-entropy plus OmniAlignNet's contrastive loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from omnivinci_jax.models.omni_align import ClipEmbeddings
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.train.losses import contrastive_loss, score_slots
from omnivinci_jax.train.step import Metrics, Terms

ClipLoss = Callable[[ClipEmbeddings], tuple[Float[Array, ""], Metrics]]


@dataclass(frozen=True)
class SupervisedLoss:
    """Language loss + align_weight * contrastive loss (Equation 1); a `LossFn` over Batch.

    Metrics: `loss` is the language loss, the mean over trained tokens; `align_loss` comes with its recalls; `tokens`
    counts the slots that are not padding, `samples` the conversations. `source_losses`, `source_weights` (both sums)
    and `source_samples` (counts) are vectors over the `num_sources` sources of the mixture.
    """

    model: OmniVinci
    align_weight: float
    num_sources: int = 1

    def __call__(self, params: dict, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """Returns the loss and the metrics of a batch."""
        return self._loss(params, batch, trained_weight(batch), partial(align_loss, clip_source=batch.clip_source))

    def split(self, params: dict, microbatches: Batch) -> Terms:
        """Splits the loss; the language loss is divided by the weight of the whole batch.

        In the contrastive loss, each clip is a negative of every other clip of the batch. All clips are therefore
        embedded once, without gradients, which gives the loss and its cotangents with respect to the embeddings. Each
        microbatch then has a surrogate loss, linear in its own embeddings, with the same gradient.
        """
        weight = trained_weight(microbatches)
        if not self.align_weight:
            return Terms(lambda params, part: self._loss(params, part, weight), microbatches, {})
        embed = partial(self.model.apply, {"params": params}, method=self.model.embed_clips)
        clips = jax.lax.map(embed, microbatches)
        count = len(clips.scale)
        clips = clips._replace(scale=clips.scale[0])
        loss = partial(align_loss, clip_source=microbatches.clip_source)
        cotangents, metrics = jax.grad(loss, has_aux=True)(clips)
        cotangents = cotangents._replace(scale=jnp.full(count, cotangents.scale / count))

        def microbatch_loss(params: dict, inputs: tuple[Batch, ClipEmbeddings]) -> tuple[Array, Metrics]:
            part, cotangents = inputs

            def surrogate_loss(clips: ClipEmbeddings) -> tuple[Array, Metrics]:
                products = jax.tree.leaves(jax.tree.map(jnp.vdot, clips, cotangents))
                return sum(products, jnp.zeros(())), {}

            return self._loss(params, part, weight, surrogate_loss)

        return Terms(microbatch_loss, (microbatches, cotangents), metrics)

    def _loss(
        self, params: dict, batch: Batch, weight: Float[Array, ""], clip_loss: ClipLoss | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        output: Any = self.model.apply({"params": params}, batch)
        losses, _ = score_slots(self.model, params, output.hidden, batch.targets)
        losses *= batch.loss_weights
        language = jnp.sum(losses) / weight
        samples = by_source(sample_starts(batch.segment_ids), batch.sources, self.num_sources)
        metrics = {
            "loss": language,
            "tokens": jnp.sum(batch.segment_ids > 0),
            "samples": samples.sum(),
            "source_losses": by_source(losses, batch.sources, self.num_sources),
            "source_weights": by_source(batch.loss_weights, batch.sources, self.num_sources),
            "source_samples": samples,
        }
        if clip_loss is None or not self.align_weight:
            return language, metrics
        align, align_metrics = clip_loss(output.clips)
        return language + self.align_weight * align, metrics | align_metrics


def trained_weight(batch: Batch) -> Float[Array, ""]:
    """Returns the divisor of the language loss: the weight of all trained tokens, or 1 if there are none."""
    return jnp.maximum(jnp.sum(batch.loss_weights), 1.0)


def align_loss(clips: ClipEmbeddings, clip_source: Int[Array, "*G K"]) -> tuple[Float[Array, ""], Metrics]:
    """Returns the contrastive loss over all clips of a batch, and its metrics."""
    vision, audio = (x.reshape(-1, x.shape[-1]) for x in (clips.vision, clips.audio))
    loss, recalls = contrastive_loss(vision, audio, clip_source.ravel(), clips.scale)
    return loss, {"align_loss": loss} | recalls


def by_source(values: Num[Array, "G R T"], sources: Int[Array, "G R T"], num_sources: int) -> Num[Array, " sources"]:
    """Sums per-slot values over the slots of each source."""
    # XLA fuses and shards this one reduction; it would do neither with a scatter.
    return jnp.sum(jnp.where(sources[..., None] == jnp.arange(num_sources), values[..., None], 0), axis=(0, 1, 2))


def sample_starts(segment_ids: Int[Array, "G R T"]) -> Int[Array, "G R T"]:
    """Marks the first slot of each conversation with 1: its segment id is new and not 0."""
    before = jnp.pad(segment_ids, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    return ((segment_ids > 0) & (segment_ids != before)).astype(jnp.int32)
