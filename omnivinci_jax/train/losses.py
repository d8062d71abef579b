"""The two losses: next-token cross-entropy, and OmniAlignNet's contrastive loss (Equation 1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def token_losses(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Cross-entropy of each position in float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def language_loss(losses: Float[Array, "*B"], weights: Float[Array, "*B"]) -> Float[Array, ""]:
    """Mean over the trained tokens of the global batch; 0 where there are none."""
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def contrastive_loss(
    vision: Float[Array, "K D"],
    audio: Float[Array, "K D"],
    source: Int[Array, " K"],
    scale: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Symmetric contrastive loss over the K clips of the global batch (Equation 1), with retrieval accuracies.

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

    def direction(axis: int) -> tuple[Array, Array]:
        loss = language_loss(jax.nn.logsumexp(similarity, axis=axis) - positive, weights)
        hits = positive >= jnp.max(similarity, axis=axis)
        return loss, language_loss(hits.astype(jnp.float32), weights)

    (vision_to_audio, vision_recall), (audio_to_vision, audio_recall) = direction(1), direction(0)
    metrics = {"vision_to_audio_r1": vision_recall, "audio_to_vision_r1": audio_recall, "clips": jnp.sum(weights)}
    return (vision_to_audio + audio_to_vision) / 2, metrics


def right_tokens(
    logits: Float[Array, "*B V"], targets: Int[Array, "*B"], weights: Float[Array, "*B"]
) -> Bool[Array, "*B"]:
    """Where the most likely token is the target, or nothing is asked.

    An answer all of whose tokens are right is exactly what greedy decoding would have generated, so one forward pass
    measures exact-match accuracy.
    """
    return (jnp.argmax(logits, axis=-1) == targets) | (weights == 0)
