"""The compiled programs of generation: towers on a slice, prefill steps, decode steps, scores.

Their first two arguments are the module (static) and the parameters (`encode_*`: a plain tree; the others: Weights).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from omnivinci_jax.generate.decode_state import DecodeState, replace_rows, select_rows, shard_state
from omnivinci_jax.generate.request import MEDIA
from omnivinci_jax.generate.sampling import sample_tokens
from omnivinci_jax.generate.weights import Weights
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import Batch

DECODE_STEPS = 16  # maximum tokens per row in one call of `decode`
NO_TOKEN = -1  # what `decode` returns for an idle row


@partial(jax.jit, static_argnums=0)
def encode_vision(model: OmniVinci, params: dict, group: Batch) -> Float[Array, "V D"]:
    """Returns the vision tokens of a group, with time embeddings."""
    return _apply(model.timed_vision, params, jax.tree.map(lambda x: x[None], group))[0]


@partial(jax.jit, static_argnums=0)
def encode_sound(model: OmniVinci, params: dict, group: Batch) -> Float[Array, "A D"]:
    """Returns the audio tokens of a group, with time embeddings."""
    return _apply(model.timed_audio, params, jax.tree.map(lambda x: x[None], group))[0]


@partial(jax.jit, static_argnums=0)
def begin_sound(model: OmniVinci, params: dict, group: Batch) -> Float[Array, "W positions C"]:
    """Does the first half of `encode_sound`."""
    half = model.config.audio.encoder_layers // 2
    group = jax.tree.map(lambda x: x[None], group)
    return _apply(model.begin_audio, _sound_layers(params, slice(0, half)), group, half)


@partial(jax.jit, static_argnums=0)
def end_sound(
    model: OmniVinci, params: dict, group: Batch, half_encoded: Float[Array, "W positions C"]
) -> Float[Array, "A D"]:
    """Does the second half of `encode_sound`."""
    half = model.config.audio.encoder_layers // 2
    group = jax.tree.map(lambda x: x[None], group)
    return _apply(model.end_audio, _sound_layers(params, slice(half, None)), half_encoded, group, half)[0]


def _sound_layers(params: dict, layers: slice) -> dict:
    """Returns the parameters with only some of the sound tower's layers."""
    tower = params["sound_tower"]
    return params | {"sound_tower": tower | {"layers": jax.tree.map(lambda leaf: leaf[layers], tower["layers"])}}


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(
    model: OmniVinci,
    weights: Weights,
    state: DecodeState,
    rows: Int32[Array, " P"],
    starts: Int32[Array, " P"],
    ends: Int32[Array, " P"],
    tokens: Int32[Array, "P T"],
    media: Float[Array, "P T D"],
) -> DecodeState:
    """Fills slots of P rows, one in each batch shard, from `starts` on; their lengths become `ends`.

    Args:
        model: the module.
        weights: its parameters.
        state: the batch.
        rows: indices of the rows.
        starts: first slot to fill in each row; if `ends` is the same, the row does not change.
        ends: one past the last slot to fill, at most `starts` + T.
        tokens: token ids of these slots; MEDIA where `media` has the embedding.
        media: embeddings of media slots.
    """
    is_media = (tokens == MEDIA)[..., None]
    text = _apply(model.embed_text, weights.rest, jnp.maximum(tokens, 0))
    x = jnp.where(is_media, media.astype(text.dtype), text)
    _, layers = _extend(model, weights, state, x, starts, rows)
    return shard_state(state._replace(layers=layers, lengths=state.lengths.at[rows].set(ends)))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    model: OmniVinci,
    weights: Weights,
    state: DecodeState,
    steps: Int32[Array, ""],
    end_token: Int32[Array, ""],
    rows: Int32[Array, " R"] | None = None,
) -> tuple[DecodeState, Int32[Array, "R DECODE_STEPS"], Float32[Array, "R DECODE_STEPS"]]:
    """Generates up to `steps` tokens in every answering row; stops early if all have ended.

    Args:
        model: the module.
        weights: its parameters.
        state: the batch.
        steps: at most DECODE_STEPS.
        end_token: the token that ends an answer.
        rows: indices of the rows that may answer, as many in each batch shard; None for all in order.

    Returns:
        the batch; the tokens of these rows, NO_TOKEN where a row is idle; their log-probabilities under the model
        itself.
    """
    picked = state if rows is None else select_rows(state, rows)
    count = jnp.arange(picked.rows)

    def unfinished(carry: tuple[DecodeState, Array, Array, Array]) -> Array:
        picked, _, _, step = carry
        return (step < steps) & (picked.remaining > 0).any()

    def step_all(carry: tuple[DecodeState, Array, Array, Array]) -> tuple[DecodeState, Array, Array, Array]:
        picked, tokens, logprobs, step = carry
        x = _apply(model.embed_text, weights.rest, picked.last_tokens[:, None])
        hidden, layers = _extend(model, weights, picked, x, picked.lengths, rows)
        logits = _apply(model.logits, weights.rest, hidden[:, 0])
        token = sample_tokens(logits, picked.seen, picked.steps, picked.sampling)
        logprob = _logprobs(logits, token)

        active = picked.remaining > 0
        advance = active.astype(jnp.int32)
        picked = picked._replace(
            layers=layers,
            lengths=picked.lengths + advance,
            last_tokens=jnp.where(active, token, picked.last_tokens),
            seen=picked.seen.at[count, token].max(active),
            steps=picked.steps + advance,
            remaining=jnp.where(token == end_token, 0, picked.remaining - advance),
        )
        tokens = tokens.at[:, step].set(jnp.where(active, token, NO_TOKEN))
        return picked, tokens, logprobs.at[:, step].set(logprob), step + 1

    shape = picked.rows, DECODE_STEPS
    carry = picked, jnp.full(shape, NO_TOKEN, jnp.int32), jnp.zeros(shape), jnp.int32(0)
    picked, tokens, logprobs, _ = jax.lax.while_loop(unfinished, step_all, carry)
    return shard_state(picked if rows is None else replace_rows(state, rows, picked)), tokens, logprobs


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def score(
    model: OmniVinci,
    weights: Weights,
    state: DecodeState,
    rows: Int32[Array, " P"],
    starts: Int32[Array, " P"],
    tokens: Int32[Array, "P T"],
    targets: Int32[Array, "P T"],
) -> tuple[DecodeState, Float32[Array, "P T"]]:
    """Returns log-probabilities of the targets of T text slots; fills slots from `starts` on, but keeps the lengths."""
    x = _apply(model.embed_text, weights.rest, tokens)
    hidden, layers = _extend(model, weights, state, x, starts, rows)
    logits = _apply(model.logits, weights.rest, hidden)
    return shard_state(state._replace(layers=layers)), _logprobs(logits, targets)


def _extend(
    model: OmniVinci, weights: Weights, state: DecodeState, x: Array, starts: Array, rows: Array | None = None
) -> tuple[Array, tuple]:
    return _apply(model.extend, weights.rest, x, weights.layers, state.layers, starts, rows)


def _apply(method: Callable, params: dict, *arguments: Any) -> Any:
    """Calls a method of a module with parameters."""
    return method.__self__.apply({"params": params}, *arguments, method=method)


def _logprobs(logits: Float32[Array, "*B V"], tokens: Int32[Array, "*B"]) -> Float32[Array, "*B"]:
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
