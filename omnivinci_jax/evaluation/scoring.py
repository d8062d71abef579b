"""The jitted evaluation step: scores of every slot, and embeddings of every clip."""

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
    """What an evaluation is computed from; every process holds the whole of it.

    right: whether greedy decoding would choose the slot's target, or the slot has none. An answer whose tokens are all
    right is exactly what greedy decoding would have generated, so one forward pass measures exact-match accuracy.
    clips, clip_source: OmniAlignNet's embeddings of every clip with both streams, if asked for, and the clip's file.
    """

    losses: Float[Array, "G R T"]
    weights: Float[Array, "G R T"]
    right: Bool[Array, "G R T"]
    segment_ids: Int[Array, "G R T"]
    clips: ClipEmbeddings | None
    clip_source: Int[Array, "G K"]


def make_eval_step(model: OmniVinci, mesh: Mesh, *, align: bool = True) -> Callable[[dict, Batch], Scores]:
    """(params, batch) to scores; with `align`, clip embeddings among them."""

    def eval_step(params: dict, batch: Batch) -> Scores:
        output: Any = model.apply({"params": params}, batch)
        losses, right = score_slots(model, params, output.hidden, batch.targets)
        weights = batch.loss_weights
        right |= weights == 0
        clips = output.clips if align else None
        return Scores(losses * weights, weights, right, batch.segment_ids, clips, batch.clip_source)

    return jax.jit(eval_step, out_shardings=replicated(mesh))
