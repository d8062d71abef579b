"""Greedy answers: media encoded once, then one forward pass of the decoder a token."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from omnivinci_jax.errors import UserError
from omnivinci_jax.model_dir import LoadedModel
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.assemble import PackedRow, assemble
from omnivinci_jax.sequence.batch import Batch, Capacity
from omnivinci_jax.sequence.chat import Conversation

# Lengths are rounded up to multiples of these, so that prompts of like length share a compiled program.
_SLOTS, _TILES = 64, 8


def answer(loaded: LoadedModel, conversation: Conversation, max_new_tokens: int = 64) -> str:
    """The model's greedy answer to a conversation; raises UserError for media or lengths it cannot read."""
    return loaded.processor.tokenizer.decode(list(greedy_tokens(loaded, conversation, max_new_tokens)))


def greedy_tokens(loaded: LoadedModel, conversation: Conversation, max_new_tokens: int) -> Iterator[int]:
    """Token ids as they are decided, without the final end token."""
    model, params, processor = loaded
    batch, length = _prompt_batch(loaded, conversation, max_new_tokens)
    embeddings = _embed(model, params, batch)
    for position in range(length, length + max_new_tokens):
        token = int(_next_token(model, params, embeddings, position))
        if token == processor.tokenizer.eos_id:
            return
        yield token
        embeddings = _append(model, params, embeddings, position, token)


def _prompt_batch(loaded: LoadedModel, conversation: Conversation, max_new_tokens: int) -> tuple[Batch, int]:
    processor, config = loaded.processor, loaded.processor.config
    sizes, tiles, windows = processor.load(conversation)
    row = processor.lay_out(conversation, sizes, generate=True)
    longest = config.text.max_position_embeddings
    if len(row) + max_new_tokens > longest:
        raise UserError(
            f"the prompt takes {len(row)} positions and the answer up to {max_new_tokens}, but the model reads "
            f"{longest}; shorten the media or the text, or lower --max_new_tokens"
        )
    capacity = Capacity(
        rows=1,
        slots=_round_up(len(row) + max_new_tokens, _SLOTS),
        tiles=_round_up(max(row.num_tiles, 1), _TILES),
        windows=max(row.num_windows, 1),
        clips=max(len(conversation.media), 1),
    )
    group = assemble([PackedRow(0, 1, row, tiles, windows)], config, capacity)
    return jax.tree.map(lambda array: jnp.asarray(array)[None], group), len(row)


@partial(jax.jit, static_argnums=0)
def _embed(model: OmniVinci, params: dict, batch: Batch) -> jax.Array:
    return model.apply({"params": params}, batch, method=model.embed)


@partial(jax.jit, static_argnums=0)
def _next_token(model: OmniVinci, params: dict, embeddings: jax.Array, length: jax.Array) -> jax.Array:
    slots = jnp.arange(embeddings.shape[1])[None]
    hidden = model.apply({"params": params}, embeddings, slots, (slots < length).astype(jnp.int32), method=model.decode)
    last = jax.lax.dynamic_index_in_dim(hidden, length - 1, axis=1)
    return jnp.argmax(model.apply({"params": params}, last, method=model.logits)[0, 0])


@partial(jax.jit, static_argnums=0)
def _append(model: OmniVinci, params: dict, embeddings: jax.Array, position: jax.Array, token: jax.Array) -> jax.Array:
    embedded = model.apply({"params": params}, token[None, None], method=model.embed_text)
    return jax.lax.dynamic_update_slice_in_dim(embeddings, embedded.astype(embeddings.dtype), position, axis=1)


def _round_up(value: int, multiple: int) -> int:
    return int(np.ceil(value / multiple)) * multiple
