"""The jitted evaluation step: scores of slots and embeddings of clips."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from omnivinci_jax.mesh.rules import replicated
from omnivinci_jax.models.omni_align import ClipEmbeddings
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.train.losses import score_slots


class Scores(NamedTuple):
    """Scores of a global batch, replicated on every process.

    correct: whether the slot's target is the argmax, or the slot has no target. If all tokens of an answer are correct,
    greedy decoding generates exactly this answer, so one forward pass measures exact-match accuracy.
    clips, clip_source: OmniAlignNet's embeddings of every clip with both streams (if requested) and the clip's file id.
    """

    losses: Float[Array, "G R T"]
    weights: Float[Array, "G R T"]
    correct: Bool[Array, "G R T"]
    segment_ids: Int[Array, "G R T"]
    clips: ClipEmbeddings | None
    clip_source: Int[Array, "G K"]


def make_eval_step(model: OmniVinci, mesh: Mesh, *, align: bool = True) -> Callable[[dict, Batch], Scores]:
    """Makes the step, (params, batch) -> scores; `align` adds clip embeddings."""

    def eval_step(params: dict, batch: Batch) -> Scores:
        output: Any = model.apply({"params": params}, batch)
        losses, correct = score_slots(model, params, output.hidden, batch.targets)
        weights = batch.loss_weights
        correct |= weights == 0
        clips = output.clips if align else None
        return Scores(losses * weights, weights, correct, batch.segment_ids, clips, batch.clip_source)

    return jax.jit(eval_step, out_shardings=replicated(mesh))
