"""Chooses the next token of each row: greedy, or sampled with the row's own temperature, top-k, top-p and seed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray, UInt32

from omnivinci_jax.generate.request import Sampling

AnyArray = Array | np.ndarray


class SamplingArrays(NamedTuple):
    """The Sampling of each row, and the index of its sample; scalars for a single row."""

    temperature: Float32[AnyArray, " *B"]
    top_k: Int32[AnyArray, " *B"]
    top_p: Float32[AnyArray, " *B"]
    repetition_penalty: Float32[AnyArray, " *B"]
    seed: UInt32[AnyArray, " *B"]
    sample: Int32[AnyArray, " *B"]


def sampling_arrays(sampling: Sampling, sample: int = 0) -> SamplingArrays:
    """Returns the settings of one row."""
    return SamplingArrays(
        np.array(sampling.temperature, np.float32),
        np.array(sampling.top_k, np.int32),
        np.array(sampling.top_p, np.float32),
        np.array(sampling.repetition_penalty, np.float32),
        np.array(sampling.seed, np.uint32),
        np.array(sample, np.int32),
    )


def sample_tokens(
    logits: Float32[Array, "B V"],
    seen: Bool[Array, "B V"],
    steps: Int32[Array, " B"],
    sampling: SamplingArrays,
) -> Int32[Array, " B"]:
    """Chooses the next token of each row; rows do not affect each other.

    Args:
        logits: of the next token.
        seen: tokens to which the repetition penalty applies.
        steps: tokens that each row has generated; with seed and sample it determines the random numbers.
        sampling: of each row.
    """
    penalty, temperature = sampling.repetition_penalty[:, None], sampling.temperature[:, None]

    def penalized() -> Float32[Array, "B V"]:
        return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)

    scores = jax.lax.cond((penalty != 1).any(), penalized, lambda: logits)
    greedy = jnp.argmax(scores, axis=-1)

    def sampled() -> Int32[Array, " B"]:
        scaled = scores / jnp.where(temperature > 0, temperature, 1)
        truncated = (sampling.top_k > 0) | (sampling.top_p < 1)
        allowed = jax.lax.cond(truncated.any(), lambda: truncate(scaled, sampling), lambda: scaled)
        keys = jax.vmap(_key)(sampling.seed, sampling.sample, steps)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.where(sampling.temperature > 0, jnp.argmax(allowed + noise, axis=-1), greedy)

    return jax.lax.cond((temperature > 0).any(), sampled, lambda: greedy).astype(jnp.int32)


def _key(seed: UInt32[AnyArray, ""], sample: Int32[AnyArray, ""], step: Int32[AnyArray, ""]) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), step)


def truncate(logits: Float32[Array, "B V"], sampling: SamplingArrays) -> Float32[Array, "B V"]:
    """Sets logits to -inf outside the top_k most likely tokens, then outside the top_p most likely of the rest.

    Keeps ties with the last kept token. Finds the smallest kept logit by radix select, one bit at a time, with sums
    over the vocabulary instead of sorting.
    """
    keys = _sortable_bits(logits)
    k = jnp.where(sampling.top_k > 0, sampling.top_k, logits.shape[-1])
    kept = keys >= _radix_select(lambda least: (keys >= least).sum(axis=-1) >= k, len(keys))
    probabilities = jax.nn.softmax(logits, axis=-1, where=kept)
    # Rounding may leave the sum of all below top_p: then no threshold is enough, and all are kept.
    in_nucleus = keys >= _radix_select(
        lambda least: jnp.where(keys >= least, probabilities, 0).sum(axis=-1) >= sampling.top_p, len(keys)
    )
    # The sum may also reach 1 before the last token, so a row without top_p skips this.
    kept &= in_nucleus | (sampling.top_p >= 1)[:, None]
    return jnp.where(kept, logits, -jnp.inf)


def _sortable_bits(x: Float32[Array, "..."]) -> UInt32[Array, "..."]:
    """Maps floats to integers of the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(2**31))


def _radix_select(enough: Callable[[UInt32[Array, "B 1"]], Bool[Array, " B"]], rows: int) -> UInt32[Array, "B 1"]:
    """Returns for each row the largest number for which `enough` holds; it must hold for all smaller ones."""

    def bit(index: Int32[Array, ""], found: UInt32[Array, "B 1"]) -> UInt32[Array, "B 1"]:
        candidate = found | (jnp.uint32(2**31) >> index.astype(jnp.uint32))
        return jnp.where(enough(candidate)[:, None], candidate, found)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros((rows, 1), jnp.uint32))
