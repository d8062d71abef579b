"""The two losses: next-token cross-entropy, and OmniAlignNet's contrastive loss (Equation 1)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.sharding import mesh_axes

# Most logits that a device holds at once: 1 GiB in float32.
MOST_LOGITS = 2**28


def score_slots(
    model: OmniVinci, params: dict, hidden: Float[Array, "G R T D"], targets: Int[Array, "G R T"]
) -> tuple[Float[Array, "G R T"], Bool[Array, "G R T"]]:
    """(cross-entropy of each slot's target, whether it is the most likely token), with few of the logits at a time.

    A device takes its own slots, all of the mesh's axes sharing them, piece by piece, and makes each piece's logits
    again for the gradient. It gathers the head once, and sums the head's gradient over the pieces before that is summed
    over devices.
    """
    score = partial(_score_pieces, model)
    if not jax.sharding.get_abstract_mesh().empty:
        slots = mesh_axes("group", None, "item")
        score = jax.shard_map(score, in_specs=(PartitionSpec(), slots, slots), out_specs=slots, check_vma=False)
    return score(model.head_params(params), hidden, targets)


def _score_pieces(model: OmniVinci, head: dict, hidden: Array, targets: Array) -> tuple[Array, Array]:
    def score(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, targets = piece
        logits: Any = model.apply({"params": head}, hidden, method=model.logits)
        return token_losses(logits, targets), jnp.argmax(logits, axis=-1) == targets

    count = -(-targets.size * model.config.text.padded_vocab_size // MOST_LOGITS)
    if count == 1:
        return score((hidden, targets))
    padding = -targets.size % count
    flat = jnp.pad(hidden.reshape(targets.size, -1), ((0, padding), (0, 0))), jnp.pad(targets.ravel(), (0, padding))
    pieces = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), flat)
    results = jax.lax.map(jax.checkpoint(score), pieces)
    return jax.tree.map(lambda x: x.ravel()[: targets.size].reshape(targets.shape), results)


def token_losses(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Cross-entropy of each position in float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def weighted_mean(values: Float[Array, "*B"], weights: Float[Array, "*B"]) -> Float[Array, ""]:
    """Mean by weights; 0 where they are all 0."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def contrastive_loss(
    vision: Float[Array, "K D"],
    audio: Float[Array, "K D"],
    source: Int[Array, " K"],
    scale: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Symmetric contrastive loss over K clips (Equation 1), in training those of the global batch.

    With it come retrieval accuracies: R@1 and R@5, the share of clips whose other stream is among the 1 or 5 that are
    most similar.

    Args:
        vision, audio: L2-normalised embeddings, one pair a clip.
        source: a number for the file of each clip, 0 where there is no clip. Clips of one file are not each other's
            negatives.
        scale: what the similarities are multiplied with; 1 in the paper.
    """
    similarity = scale * jnp.einsum("id,jd->ij", vision, audio, preferred_element_type=jnp.float32)
    there = source > 0
    negative = (source[:, None] != source[None, :]) & there[None, :] & there[:, None]
    allowed = negative | jnp.eye(len(source), dtype=bool)
    weights = there.astype(jnp.float32)
    similarity = jnp.where(allowed, similarity, -jnp.inf)
    positive = jnp.diagonal(similarity)

    losses, metrics = [], {"clips": jnp.sum(weights)}
    for name, axis in (("vision_to_audio", 1), ("audio_to_vision", 0)):
        losses.append(weighted_mean(jax.nn.logsumexp(similarity, axis=axis) - positive, weights))
        not_worse = jnp.sum(similarity >= jnp.expand_dims(positive, axis), axis=axis)  # itself among them
        for most in (1, 5):
            metrics[f"{name}_r{most}"] = weighted_mean((not_worse <= most).astype(jnp.float32), weights)
    return (losses[0] + losses[1]) / 2, metrics
