"""Prompts to tokens: what is common with the last prompt is kept, the rest filled in, answers decoded by the chunk."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Int32, Int64

from omnivinci_jax.data.processor import Processor, is_tiled
from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.generate.cache import SLACK, Weights, bucket, decoding_weights, grown, new_cache, rows_of, slots_of
from omnivinci_jax.generate.media import MediaCache
from omnivinci_jax.generate.programs import CHUNK, MEDIA, Answering, decode, fill, score
from omnivinci_jax.generate.sampling import Sampling
from omnivinci_jax.mesh.mesh import on_mesh
from omnivinci_jax.mesh.rules import BATCH_AXES, parameter_shardings
from omnivinci_jax.models.initialization import boxed_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.qwen2 import Cache
from omnivinci_jax.sequence.batch import TEXT
from omnivinci_jax.sequence.chat import Conversation
from omnivinci_jax.sequence.row import Row

_CHUNKS = (SLACK, 32)  # slots filled at once
_PATIENCE = 0.05  # seconds between two looks at what has been decoded, as far as that depends on us


@dataclass(frozen=True)
class Prompt:
    """A laid-out conversation as the decoder reads it.

    tokens: text ids, MEDIA at media slots. media: what goes into those.
    identity: a number for what each slot holds: slots up to which two prompts are equal have the same keys and values.
    """

    tokens: Int32[np.ndarray, " n"]
    media: Float[np.ndarray, "m D"]
    identity: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.tokens)


def prompt_of(row: Row, media: Float[np.ndarray, "m D"], numbers: Int64[np.ndarray, " m"]) -> Prompt:
    """A row with what goes into its media slots, and a number that identifies each of these."""
    is_text = row.slot_kind == TEXT
    identity = row.tokens.astype(np.int64)
    identity[~is_text] = -1 - numbers
    return Prompt(np.where(is_text, row.tokens, MEDIA).astype(np.int32), media, identity)


class _Kept(NamedTuple):
    """The cache of the last prompt and answer, and what each of its slots holds."""

    cache: Cache
    identity: Int64[np.ndarray, " n"]


class Engine:
    """Answers prompts with one model; keeps encoded media, and the decoder's cache of the last conversation.

    A second question about the same media, or the next turn of a conversation, begins where the two prompts part.
    """

    def __init__(self, model: OmniVinci, params: dict, processor: Processor, mesh: Mesh | None = None):
        """Copies the decoder's parameters, layer by layer; `mesh` shares them, rows and key heads over devices.

        Raises:
            ConfigError: a mesh that would share a row's slots.
        """
        if mesh and mesh.shape["context"] > 1:
            raise ConfigError(
                f"mesh.context is {mesh.shape['context']}: answers are made with context=1; share heads with tensor"
            )
        self.model, self.processor, self.mesh = model, processor, mesh
        with self._on_mesh():
            if mesh:
                params = jax.device_put(params, _shardings(model, mesh))
            self.weights: Weights = decoding_weights(model, params)
        self._media = MediaCache(model, self.weights.rest, processor, mesh.size if mesh else 1)
        self._kept: _Kept | None = None

    def prompt(self, conversation: Conversation) -> Prompt:
        """Reads and encodes a conversation's media, and lays it out up to the answer; raises UserError."""
        tiled = is_tiled(conversation)
        with self._on_mesh(("group", None)):  # one group, whose tiles and windows all devices share
            encoded = [self._media.encode(item, tiled) for item in conversation.media]
        row = self.processor.lay_out(conversation, [item.size for item in encoded], generate=True)
        empty = np.zeros((0, self.model.config.text.hidden_size), self.model.compute.dtype)
        media = np.concatenate([empty, *(item.tokens for item in encoded)])
        numbers = [item.number * 2**32 + np.arange(len(item.tokens)) for item in encoded]
        return prompt_of(row, media, np.concatenate([np.zeros(0, np.int64), *numbers]))

    def check_length(self, prompt: Prompt, new_tokens: int) -> None:
        """Raises UserError where the model cannot read so many positions."""
        longest, media = self.model.config.text.max_position_embeddings, len(prompt.media)
        if len(prompt) + new_tokens > longest:
            raise UserError(
                f"the prompt takes {len(prompt)} positions ({media} of media, {len(prompt) - media} of text) and the "
                f"answer up to {new_tokens}, but the model reads {longest}: at most {max(longest - new_tokens, 0)} are "
                "left for the prompt; shorten the media or the text, or lower max_new_tokens"
            )

    def tokens(self, prompts: list[Prompt], sampling: Sampling, samples: int = 1) -> Iterator[list[list[int]]]:
        """Tokens as they are decided: at each turn the new ones of every answer, its end token included.

        Answers go by prompt, `samples` of each. Ends when all have ended or have `max_new_tokens` tokens, or when the
        caller stops asking. Raises UserError for a prompt that is too long.
        """
        for prompt in prompts:
            self.check_length(prompt, sampling.max_new_tokens)
        end, numbers = np.int32(self.processor.tokenizer.eos_id), sampling.numbers()
        state, answers = self._filled(prompts, sampling, samples), len(prompts) * samples
        said, ended, count = [], np.zeros(answers, bool), 1
        try:
            while not ended.all() and len(said) < sampling.max_new_tokens:
                count, began = min(count, sampling.max_new_tokens - len(said)), time.monotonic()
                with self._on_mesh():
                    state, tokens = decode(
                        self.model, self.weights, state, numbers, np.int32(len(said)), np.int32(count), end
                    )
                new = np.asarray(tokens)[:answers, :count]
                if time.monotonic() - began < _PATIENCE:
                    count = min(2 * count, CHUNK)
                said.extend(new[0].tolist())
                yield [[] if over else _up_to(row.tolist(), end) for row, over in zip(new, ended, strict=True)]
                ended |= (new == end).any(axis=1)
        finally:
            # Not where Ctrl-C came between the cache that was given away and the one that comes back.
            if answers == 1 and not state.cache.layers[0].keys.is_deleted():
                self._kept = _Kept(state.cache, np.append(prompts[0].identity, _up_to(said, end)[:-1]))

    def score(self, prompt: Prompt, answers: list[list[int]]) -> list[Float32[np.ndarray, " n"]]:
        """Log-probabilities of the tokens of given answers to one prompt, which is filled in once."""
        longest = max(map(len, answers))
        self.check_length(prompt, longest)
        cache, rows = self._continued(prompt, bucket(len(prompt) + longest)), self._rows(len(answers))
        self._kept = _Kept(cache, prompt.identity[:-1])
        width = _CHUNKS[1]
        targets = np.zeros((rows, -(-longest // width) * width), np.int32)
        for row, answer in zip(targets, answers, strict=False):
            row[: len(answer)] = answer
        tokens = np.insert(targets, 0, prompt.tokens[-1], axis=1)[:, :-1]
        found = []
        with self._on_mesh():
            cache = rows_of(cache, np.zeros(rows, np.int32))
            for first in range(0, longest, width):
                cache = cache._replace(length=np.int32(len(prompt) - 1 + first))
                part = slice(first, first + width)
                cache, scores = score(self.model, self.weights, cache, tokens[:, part], targets[:, part])
                found.append(np.asarray(scores))
        return [row[: len(answer)] for row, answer in zip(np.concatenate(found, axis=1), answers, strict=False)]

    def _filled(self, prompts: list[Prompt], sampling: Sampling, samples: int) -> Answering:
        """Every answer at its start: all of its prompt but the last token in the cache."""
        answers, longest = len(prompts) * samples, max(map(len, prompts))
        slots, rows = bucket(longest + sampling.max_new_tokens), self._rows(answers)
        if len(prompts) == 1:
            cache = self._continued(prompts[0], slots)
            if answers > 1:
                self._kept = _Kept(cache, prompts[0].identity[:-1])
        else:
            cache = self._fill(self._new_cache(prompts, slots), prompts, 0)
        places = np.minimum(np.arange(rows) // samples, len(prompts) - 1)
        if samples > 1:
            with self._on_mesh():
                cache = rows_of(cache, places.astype(np.int32))
        seen = np.zeros((rows, self.model.config.text.padded_vocab_size), bool)
        for row, place in zip(seen, places, strict=True):
            row[prompts[place].tokens[prompts[place].tokens != MEDIA]] = True
        last = np.array([prompts[place].tokens[-1] for place in places], np.int32)
        return Answering(cache, last, seen, np.arange(rows, dtype=np.int32) % samples, np.arange(rows) >= answers)

    def _continued(self, prompt: Prompt, slots: int) -> Cache:
        """A cache of `slots` slots or more with all of a prompt but its last token, from the kept one if that helps."""
        kept, self._kept = self._kept, None
        common = _common(kept.identity, prompt.identity[:-1]) if kept else 0
        # A longer cache than is needed makes each token slower: not for a few common slots.
        if common and (slots_of(kept.cache) == slots or common >= len(prompt) // 2):
            cache = kept.cache
            if slots_of(cache) < slots:
                with self._on_mesh():
                    cache = grown(cache, slots)
        else:
            cache, common = self._new_cache([prompt], slots), 0
        return self._fill(cache, [prompt], common)

    def _new_cache(self, prompts: list[Prompt], slots: int) -> Cache:
        """Of rows that end together; rows past those of the prompts begin there."""
        rows, longest = self._rows(len(prompts)), max(map(len, prompts))
        start = np.full(rows, 0 if len(prompts) == 1 else longest, np.int32)
        start[: len(prompts)] = [longest - len(prompt) for prompt in prompts]
        with self._on_mesh():
            return new_cache(self.model.config.text, rows, slots, self.model.compute.dtype, start)

    def _fill(self, cache: Cache, prompts: list[Prompt], first: int) -> Cache:
        """The cache from the slot `first` on with all of the prompts but their last tokens."""
        end = max(map(len, prompts)) - 1
        tokens = np.zeros((len(cache.start), end + SLACK), np.int32)
        for row, prompt in zip(tokens, prompts, strict=False):
            row[end + 1 - len(prompt) : end] = prompt.tokens[:-1]
        while first < end:
            width = _CHUNKS[0] if end - first > _CHUNKS[0] // 2 else _CHUNKS[1]
            part = tokens[:, first : first + width]
            media = np.zeros((*part.shape, self.model.config.text.hidden_size), self.model.compute.dtype)
            for number, prompt in enumerate(prompts):
                before = int((tokens[number, :first] == MEDIA).sum())
                here = part[number] == MEDIA
                media[number, here] = prompt.media[before : before + here.sum()]
            with self._on_mesh():
                cache = fill(self.model, self.weights, cache._replace(length=np.int32(first)), part, media)
            first += width
        return cache._replace(length=np.int32(end))

    def _rows(self, count: int) -> int:
        """Rows of a program for so many answers: a power of two that the mesh divides."""
        shares = math.prod(self.mesh.shape[axis] for axis in BATCH_AXES) if self.mesh else 1
        return max(shares, 1 << (count - 1).bit_length())

    @contextmanager
    def _on_mesh(self, *rules: tuple[str, str | None]) -> Iterator[None]:
        """The mesh and its rules, if there is one; `rules` come before those of mesh/rules.py."""
        with on_mesh(self.mesh, rules) if self.mesh else nullcontext():
            yield


def _shardings(model: OmniVinci, mesh: Mesh) -> dict:
    boxed = jax.eval_shape(lambda key: boxed_params(model, key), jax.random.key(0))
    return parameter_shardings(boxed, mesh)


def _up_to(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def _common(one: Int64[np.ndarray, " n"], other: Int64[np.ndarray, " m"]) -> int:
    """How many numbers two arrays begin with alike."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter
