"""The compiled programs of generation: towers on a slice, a chunk of prompts, some tokens of answers, scores.

Their first two arguments are the module (static) and the parameters as generate/cache.py makes them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from omnivinci_jax.generate.cache import Weights
from omnivinci_jax.generate.sampling import Numbers, choose
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.qwen2 import Cache
from omnivinci_jax.sequence.batch import Batch

MEDIA = -1  # in place of a token where a media token stands
CHUNK = 16  # most tokens that one call of `decode` makes


class Answering(NamedTuple):
    """Answers under way, one a row.

    token: the last token of each row, which the cache does not hold yet. done: rows that have ended.
    """

    cache: Cache
    token: Int32[Array, " B"]
    seen: Bool[Array, "B V"]
    samples: Int32[Array, " B"]
    done: Bool[Array, " B"]


@partial(jax.jit, static_argnums=0)
def encode_vision(model: OmniVinci, params: dict, group: Batch) -> Float[Array, "V D"]:
    """Vision tokens of a group, with time in them."""
    batch = jax.tree.map(lambda x: x[None], group)
    return model.apply({"params": params}, batch, method=model.timed_vision)[0]


@partial(jax.jit, static_argnums=0)
def encode_sound(model: OmniVinci, params: dict, group: Batch) -> Float[Array, "A D"]:
    """Audio tokens of a group, with time in them."""
    batch = jax.tree.map(lambda x: x[None], group)
    return model.apply({"params": params}, batch, method=model.timed_audio)[0]


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def fill(
    model: OmniVinci, weights: Weights, cache: Cache, tokens: Int32[Array, "B T"], media: Float[Array, "B T D"]
) -> Cache:
    """The cache with the next T slots of each row: `media` where the token is MEDIA."""
    is_media = (tokens == MEDIA)[..., None]
    text = model.apply({"params": weights.rest}, jnp.maximum(tokens, 0), method=model.embed_text)
    x = jnp.where(is_media, media.astype(text.dtype), text)
    return model.apply({"params": weights.rest}, x, weights.layers, cache, method=model.extend)[1]


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    model: OmniVinci, weights: Weights, state: Answering, numbers: Numbers, first: Int32[Array, ""],
    count: Int32[Array, ""], end_token: Int32[Array, ""],
) -> tuple[Answering, Int32[Array, "B CHUNK"]]:  # fmt: skip
    """Up to `count` more tokens of each answer, fewer where all have ended.

    Args:
        model: the module.
        weights: its parameters.
        state: the answers so far.
        numbers: how tokens are chosen.
        first: number of the first of them in the answer.
        count: at most CHUNK.
        end_token: what ends an answer.

    Returns:
        the answers, and the tokens; those after an end token mean nothing.
    """
    rows = jnp.arange(len(state.token))

    def go_on(carry: tuple[Answering, Array, Array]) -> Array:
        state, _, number = carry
        return (number < count) & ~state.done.all()

    def step(carry: tuple[Answering, Array, Array]) -> tuple[Answering, Array, Array]:
        state, tokens, number = carry
        x = model.apply({"params": weights.rest}, state.token[:, None], method=model.embed_text)
        hidden, cache = model.apply({"params": weights.rest}, x, weights.layers, state.cache, method=model.extend)
        logits = model.apply({"params": weights.rest}, hidden[:, 0], method=model.logits)
        token = choose(logits, state.seen, state.samples, first + number, numbers)
        seen, done = state.seen.at[rows, token].set(True), state.done | (token == end_token)
        tokens = tokens.at[:, number].set(token)
        return Answering(cache, token, seen, state.samples, done), tokens, number + 1

    tokens = jnp.full((len(state.token), CHUNK), end_token, jnp.int32)
    state, tokens, _ = jax.lax.while_loop(go_on, step, (state, tokens, jnp.int32(0)))
    return state, tokens


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def score(
    model: OmniVinci, weights: Weights, cache: Cache, tokens: Int32[Array, "B T"], targets: Int32[Array, "B T"]
) -> tuple[Cache, Float[Array, "B T"]]:
    """The cache with the next T text slots of each row, and the log-probability of each slot's target."""
    x = model.apply({"params": weights.rest}, tokens, method=model.embed_text)
    hidden, cache = model.apply({"params": weights.rest}, x, weights.layers, cache, method=model.extend)
    logits = model.apply({"params": weights.rest}, hidden, method=model.logits)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return cache, chosen - jax.nn.logsumexp(logits, axis=-1)
