"""The two losses: next-token cross-entropy, and OmniAlignNet's contrastive loss (Equation 1)."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.sharding import mesh_axes

# Largest number of logits in a device's memory at a time: 1 GiB in float32.
MAX_LOGITS = 2**28

Measured = TypeVar("Measured")


def score_slots(
    model: OmniVinci, params: dict, hidden: Float[Array, "G R T D"], targets: Int[Array, "G R T"]
) -> tuple[Float[Array, "G R T"], Bool[Array, "G R T"]]:
    """Returns each slot's cross-entropy, and whether its target is the most likely token."""

    def measure(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> tuple[Array, Array]:
        return token_losses(logits, targets), jnp.argmax(logits, axis=-1) == targets

    return map_logits(measure, model, params, hidden, targets)


def map_logits(
    measure: Callable[[Array, Array], Measured],
    model: OmniVinci,
    params: dict,
    hidden: Float[Array, "G R T D"],
    targets: Int[Array, "G R T"],
) -> Measured:
    """Returns `measure(logits, targets)`, a tuple of arrays with one value per slot.

    Saves memory: the slots are sharded over all mesh axes, and each device computes the logits of its slots in pieces,
    and again in the backward pass. It gathers the head once, and sums the head's gradient over the pieces before the
    sum over devices.
    """
    score = partial(_map_pieces, measure, model)
    if not jax.sharding.get_abstract_mesh().empty:
        slots = mesh_axes("group", None, "item")
        score = jax.shard_map(score, in_specs=(PartitionSpec(), slots, slots), out_specs=slots, check_vma=False)
    return score(model.head_params(params), hidden, targets)


def _map_pieces(
    measure: Callable[[Array, Array], Measured], model: OmniVinci, head: dict, hidden: Array, targets: Array
) -> Measured:
    def score(piece: tuple[Array, Array]) -> Measured:
        hidden, targets = piece
        logits: Any = model.apply({"params": head}, hidden, method=model.logits)
        return measure(logits, targets)

    count = -(-targets.size * model.config.text.padded_vocab_size // MAX_LOGITS)
    if count == 1:
        return score((hidden, targets))
    padding = -targets.size % count
    flat = jnp.pad(hidden.reshape(targets.size, -1), ((0, padding), (0, 0))), jnp.pad(targets.ravel(), (0, padding))
    pieces = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), flat)
    results = jax.lax.map(jax.checkpoint(score), pieces)
    return jax.tree.map(lambda x: x.ravel()[: targets.size].reshape(targets.shape), results)


def token_losses(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns the cross-entropy of each position, computed in float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def weighted_mean(values: Float[Array, "*B"], weights: Float[Array, "*B"]) -> Float[Array, ""]:
    """Returns the weighted mean; 0 if all weights are 0."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def contrastive_loss(
    vision: Float[Array, "K D"],
    audio: Float[Array, "K D"],
    source: Int[Array, " K"],
    scale: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the symmetric contrastive loss over K clips (Equation 1; in training, over the global batch) and metrics.

    The metrics are the number of clips and retrieval accuracies: R@1 and R@5 are the fractions of clips whose other
    stream is among the 1 or 5 most similar.

    Args:
        vision, audio: L2-normalised embeddings, one pair per clip.
        source: id of each clip's file; 0 for no clip. Clips of one file are not each other's negatives.
        scale: factor of the similarities; 1 in the paper.
    """
    similarity = scale * jnp.einsum("id,jd->ij", vision, audio, preferred_element_type=jnp.float32)
    valid = source > 0
    negative = (source[:, None] != source[None, :]) & valid[None, :] & valid[:, None]
    allowed = negative | jnp.eye(len(source), dtype=bool)
    weights = valid.astype(jnp.float32)
    similarity = jnp.where(allowed, similarity, -jnp.inf)
    positive = jnp.diagonal(similarity)

    losses, metrics = [], {"clips": jnp.sum(weights)}
    for name, axis in (("vision_to_audio", 1), ("audio_to_vision", 0)):
        losses.append(weighted_mean(jax.nn.logsumexp(similarity, axis=axis) - positive, weights))
        rank = jnp.sum(similarity >= jnp.expand_dims(positive, axis), axis=axis)  # 1: no other clip is as similar
        for k in (1, 5):
            metrics[f"{name}_r{k}"] = weighted_mean((rank <= k).astype(jnp.float32), weights)
    return (losses[0] + losses[1]) / 2, metrics
