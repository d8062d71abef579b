"""How the next token is chosen: greedy, or drawn with a temperature from the most likely ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray, UInt32

from omnivinci_jax.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """What an answer is chosen by; the default is greedy.

    temperature: 0 takes the most likely token; 1 draws by the model's probabilities.
    top_k: draw from the k most likely tokens; 0 from all.
    top_p: draw from the fewest tokens that have this probability together.
    repetition_penalty: above 1 makes tokens of the prompt's text and of the answer less likely.
    seed: the same seed gives the same answer, whatever else is in the batch and on any mesh.
    max_new_tokens: where an answer is cut.
    stop: texts that end an answer and are not part of it.

    Raises ConfigError for values out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        for name, valid, allowed in (
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0 (1 penalises nothing)"),
            ("seed", 0 <= self.seed < 2**32, "from 0 to 2^32 - 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("stop", all(self.stop), "texts that are not empty"),
        ):
            if not valid:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be {allowed}")

    def numbers(self) -> "Numbers":
        """What of this goes to the device."""
        return Numbers(
            np.float32(self.temperature),
            np.int32(self.top_k),
            np.float32(self.top_p),
            np.float32(self.repetition_penalty),
            np.uint32(self.seed),
        )


class Numbers(NamedTuple):
    """The numbers of a Sampling: arguments of a compiled program, not constants in it."""

    temperature: Float32[Array, ""]
    top_k: Int32[Array, ""]
    top_p: Float32[Array, ""]
    repetition_penalty: Float32[Array, ""]
    seed: UInt32[Array, ""]


def choose(
    logits: Float32[Array, "B V"],
    seen: Bool[Array, "B V"],
    samples: Int32[Array, " B"],
    place: Int32[Array, ""],
    numbers: Numbers,
) -> Int32[Array, " B"]:
    """The next token of each row.

    Args:
        logits: of the next token.
        seen: which tokens the penalty is for.
        samples: which of a prompt's answers each row is; with seed and place it makes the row's own random numbers.
        place: the token's number in the answer.
        numbers: of a Sampling.
    """
    penalty = numbers.repetition_penalty

    def penalised() -> Float32[Array, "B V"]:
        return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)

    scores = jax.lax.cond(penalty != 1, penalised, lambda: logits)

    def drawn() -> Int32[Array, " B"]:
        scaled = scores / numbers.temperature
        kept = jax.lax.cond(
            (numbers.top_k > 0) | (numbers.top_p < 1), lambda: most_likely(scaled, numbers), lambda: scaled
        )
        keys = jax.vmap(lambda sample: _key(numbers.seed, sample, place))(samples)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.argmax(kept + noise, axis=-1)

    return jax.lax.cond(numbers.temperature > 0, drawn, lambda: jnp.argmax(scores, axis=-1)).astype(jnp.int32)


def _key(seed: UInt32[Array, ""], sample: Int32[Array, ""], place: Int32[Array, ""]) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), place)


def most_likely(logits: Float32[Array, "B V"], numbers: Numbers) -> Float32[Array, "B V"]:
    """Logits with -inf outside the top_k most likely tokens, and then outside those with top_p of what is left.

    Tokens as likely as the last one kept are kept too. The least logit that is kept is found bit by bit, which needs
    sums over the vocabulary and no sorting.
    """
    order = _ordered(logits)
    k = jnp.where(numbers.top_k > 0, numbers.top_k, logits.shape[-1])
    kept = order >= _largest(lambda least: (order >= least).sum(axis=-1) >= k, order.shape[0])
    probabilities = jax.nn.softmax(logits, axis=-1, where=kept)
    # Rounding may leave the sum of all below 1: then nothing would be enough, and all are kept.
    kept &= order >= _largest(
        lambda least: jnp.where(order >= least, probabilities, 0).sum(axis=-1) >= numbers.top_p, order.shape[0]
    )
    return jnp.where(kept, logits, -jnp.inf)


def _ordered(x: Float32[Array, "..."]) -> UInt32[Array, "..."]:
    """Integers in the order of the floats."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(2**31))


def _largest(enough: Callable[[UInt32[Array, "B 1"]], Bool[Array, " B"]], rows: int) -> UInt32[Array, "B 1"]:
    """For each row the largest number for which `enough` holds; it holds for all smaller ones."""

    def bit(number: Int32[Array, ""], found: UInt32[Array, "B 1"]) -> UInt32[Array, "B 1"]:
        candidate = found | (jnp.uint32(2**31) >> number.astype(jnp.uint32))
        return jnp.where(enough(candidate)[:, None], candidate, found)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros((rows, 1), jnp.uint32))
