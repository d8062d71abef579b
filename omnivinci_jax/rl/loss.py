"""The loss of GRPO (Equation 6) over packed prompts with their answers."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.train.losses import map_logits, token_losses
from omnivinci_jax.train.step import Metrics, Terms


class AnswerBatch(NamedTuple):
    """Prompts with their answers, and what the loss needs of each answer token, at the slot that predicts it.

    rows: the slots; `loss_weights` is the weight of each token (`token_weights`).
    advantages: of the answer that a token belongs to.
    sampled_logprobs: as the sampler computed them, at temperature 1 and before top-p.
    old_logprobs: under the policy that sampled; None if there is one update a rollout, whose policy is that one.
    reference_logprobs: under the reference; None if beta is 0.
    """

    rows: Batch
    advantages: Float[Any, "G R T"]
    sampled_logprobs: Float[Any, "G R T"]
    old_logprobs: Float[Any, "G R T"] | None = None
    reference_logprobs: Float[Any, "G R T"] | None = None


def policy_loss(
    logprobs: Float[Array, "*B"],
    old_logprobs: Float[Array, "*B"],
    advantages: Float[Array, "*B"],
    epsilon: float,
) -> tuple[Float[Array, "*B"], Bool[Array, "*B"]]:
    """Returns -min(ratio · A, clip(ratio, 1 - ε, 1 + ε) · A) of each token, and where the clipped term is smaller.

    ratio = π(token) / π_old(token). Equation (6) prints min(ratio, 1 - ε, 1 + ε) · A, without `clip(`; the minimum of
    these three would never exceed 1 - ε. This is the objective of the GRPO that it cites, with a ratio for each token.
    """
    ratio = jnp.exp(logprobs - old_logprobs)
    free, clipped = ratio * advantages, jnp.clip(ratio, 1 - epsilon, 1 + epsilon) * advantages
    return -jnp.minimum(free, clipped), clipped < free


def kl_estimate(logprobs: Float[Array, "*B"], reference_logprobs: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns k3 of each token, an unbiased and never negative estimate of KL(π || reference): x - 1 - log(x).

    x = reference(token) / π(token).
    """
    log_x = reference_logprobs - logprobs
    return jnp.expm1(log_x) - log_x


class TokenScores(NamedTuple):
    """Of each slot: log-probability of the target and entropy at the sampling temperature, log-probability at 1."""

    logprobs: Float[Array, "G R T"]
    model_logprobs: Float[Array, "G R T"]
    entropy: Float[Array, "G R T"]


def score_tokens(model: OmniVinci, params: dict, rows: Batch, temperature: float) -> TokenScores:
    """Scores the targets of all slots."""

    def measure(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> TokenScores:
        scaled = logits / temperature
        logprobs = jax.nn.log_softmax(scaled, axis=-1)
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        return TokenScores(-token_losses(scaled, targets), -token_losses(logits, targets), entropy)

    output: Any = model.apply({"params": params}, rows)
    return map_logits(measure, model, params, output.hidden, rows.targets)


@dataclass(frozen=True)
class GRPOLoss:
    """The weighted sum over answer tokens of the clipped policy loss + beta * KL to the reference.

    A `SplitLossFn`: the weights already add up over the whole batch, so the losses of microbatches simply add up.

    Metrics, as means over the answer tokens of the batch: `kl`, `entropy`, `clipped` (share of tokens) and
    `sampler_difference` (of the log-probabilities of sampler and trainer, absolute). `tokens` counts the slots that are
    not padding.
    """

    model: OmniVinci
    epsilon: float
    beta: float
    temperature: float = 1.0

    def __call__(self, params: dict, batch: AnswerBatch) -> tuple[Float[Array, ""], Metrics]:
        """Returns the loss and the metrics of a batch."""
        return self._loss(params, batch, answer_tokens(batch))

    def split(self, params: dict, microbatches: AnswerBatch) -> Terms:
        """Splits the loss; the metrics are divided by the answer tokens of the whole batch."""
        count = answer_tokens(microbatches)
        return Terms(lambda params, part: self._loss(params, part, count), microbatches, {})

    def _loss(self, params: dict, batch: AnswerBatch, count: Float[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        scores = score_tokens(self.model, params, batch.rows, self.temperature)
        loss, token_metrics = answer_loss(scores.logprobs, batch, self.epsilon, self.beta)
        token_metrics |= {
            "entropy": scores.entropy,
            "sampler_difference": jnp.abs(scores.model_logprobs - batch.sampled_logprobs),
        }
        counted = batch.rows.loss_weights > 0
        metrics = {name: jnp.sum(jnp.where(counted, values, 0)) / count for name, values in token_metrics.items()}
        return loss, metrics | {"tokens": jnp.sum(batch.rows.segment_ids > 0)}


def answer_loss(
    logprobs: Float[Array, "G R T"], batch: AnswerBatch, epsilon: float, beta: float
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Returns the loss of answers whose tokens have these log-probabilities, and `clipped` and `kl` of each token."""
    weights = batch.rows.loss_weights

    def at_answers(values: Float[Array, "G R T"] | None) -> Float[Array, "G R T"]:
        # Elsewhere a ratio of 1: the exponential of an arbitrary difference may be infinite, and its gradient NaN.
        fixed = jax.lax.stop_gradient(logprobs)
        return fixed if values is None else jnp.where(weights > 0, values, fixed)

    losses, clipped = policy_loss(logprobs, at_answers(batch.old_logprobs), batch.advantages, epsilon)
    metrics: dict[str, Array] = {"clipped": clipped}
    if batch.reference_logprobs is not None:
        metrics["kl"] = kl_estimate(logprobs, at_answers(batch.reference_logprobs))
        losses += beta * metrics["kl"]
    return jnp.sum(weights * losses), metrics


def answer_tokens(batch: AnswerBatch) -> Float[Array, ""]:
    """Returns the number of answer tokens that count, at least 1."""
    return jnp.maximum(jnp.sum(batch.rows.loss_weights > 0), 1).astype(jnp.float32)
