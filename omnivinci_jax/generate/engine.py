"""Runs the scheduler's actions on one batch of rows; every request has its own length, media and sampling."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Float32

from omnivinci_jax.data.processor import Processor, is_tiled
from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.generate.decode_state import (
    DecodeState,
    copy_row,
    gather_rows,
    new_state,
    start_row,
    stop_row,
    with_capacity,
)
from omnivinci_jax.generate.media import CACHE_BYTES, Loaded, MediaCache, drain, encode_row
from omnivinci_jax.generate.programs import DECODE_STEPS, NO_TOKEN, decode, prefill, score
from omnivinci_jax.generate.request import MEDIA, Prompt, Request, Sampling, make_prompt
from omnivinci_jax.generate.sampling import sampling_arrays
from omnivinci_jax.generate.scheduler import (
    PREFILL_WIDTHS,
    SMALL_PREFILL_WIDTHS,
    Action,
    CopyRow,
    Decode,
    Piece,
    Prefill,
    Resize,
    Scheduler,
    Start,
)
from omnivinci_jax.generate.weights import Weights, decoding_weights
from omnivinci_jax.mesh.mesh import on_mesh
from omnivinci_jax.mesh.rules import BATCH_AXES
from omnivinci_jax.model_dir import quantized_sharding, shardings_of
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.quantized import is_quantized
from omnivinci_jax.sequence.assemble import Tiles, Windows
from omnivinci_jax.sequence.chat import Conversation, Media
from omnivinci_jax.sequence.row import Row

# Bytes of weights that one call of `decode` may read: tens of milliseconds on an accelerator, some seconds on a CPU.
_BYTES_PER_CALL = 2**36


class Engine:
    """Answers many prompts at once with one model; requests join and leave between steps.

    Caches encoded media, and the keys and values of earlier conversations in its rows: for a second question about the
    same media, or the next turn of a conversation, prefill starts where the two prompts differ. An answer does not
    depend on the other requests.

        request = Request(engine.prompt(conversation), Sampling(temperature=0.7))
        engine.submit(request)
        while not request.finish:
            engine.step()
    """

    def __init__(
        self,
        model: OmniVinci,
        params: dict,
        processor: Processor,
        mesh: Mesh | None = None,
        *,
        rows: int | None = None,
        capacity: int | None = None,
        media_bytes: int = CACHE_BYTES,
        responsive: bool = False,
    ):
        """Copies the decoder's parameters, layer by layer.

        Args:
            model: the module.
            params: its parameters.
            processor: turns conversations into rows.
            mesh: shards parameters, rows and key/value heads over devices.
            rows, capacity: requests that run at once, and slots for prompt and answer of each. If both are given,
                everything is compiled once. None: as many as the requests need, rounded up.
            media_bytes: bytes of encoded media to cache, in host memory.
            responsive: for many users of one CPU: encode and prefill less at a time, and decode only the rows that
                answer, at the price of more programs. An accelerator is fast enough, and reads all weights for one row
                as for all.

        Raises:
            ConfigError: a mesh that shards a row's slots.
        """
        if mesh and mesh.shape["context"] > 1:
            raise ConfigError(
                f"mesh.context is {mesh.shape['context']}: generation needs context=1; shard heads with tensor"
            )
        self.model, self.processor, self.mesh = model, processor, mesh
        self._capacity, self._version = capacity, 0
        self._shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES) if mesh else 1
        self._weights: Weights | None = self._load(params)
        weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.weights.layers))
        steps = min(DECODE_STEPS, max(1, _BYTES_PER_CALL // weight_bytes))
        widths = SMALL_PREFILL_WIDTHS if responsive else PREFILL_WIDTHS
        self.scheduler = Scheduler(
            shards=self._shards, decode_steps=steps, rows=rows, capacity=capacity, prefill_widths=widths
        )
        self._responsive = responsive
        self.media = MediaCache(model, processor, mesh.size if mesh else 1, media_bytes, responsive)
        self._state: DecodeState | None = None

    @property
    def weights(self) -> Weights:
        """The weights; raises RuntimeError between `release` and `update`."""
        if self._weights is None:
            raise RuntimeError("Engine.release has freed the weights: call Engine.update first")
        return self._weights

    def compile(self) -> None:
        """Compiles what answers need, so that no request waits for it; not the towers.

        Raises:
            ValueError: `rows` and `capacity` were not given: programs depend on them.
        """
        if self._state is not None:
            return
        rows, capacity = self.scheduler.fixed_size
        text, end_token, first = self.model.config.text, np.int32(self.processor.tokenizer.eos_id), np.int32(0)
        shards = np.arange(0, rows, rows // self._shards, dtype=np.int32)
        nothing = np.zeros_like(shards)
        with self._on_mesh():
            state = new_state(text, rows, capacity, self.model.compute.dtype)
            for width in self.scheduler.prefill_widths:
                tokens = np.zeros((self._shards, width), np.int32)
                media = np.zeros((*tokens.shape, text.hidden_size), self.model.compute.dtype)
                state = prefill(self.model, self.weights, state, shards, nothing, nothing, tokens, media)
            state = copy_row(state, first, first)
            seen = np.zeros(text.padded_vocab_size, bool)
            state = start_row(state, first, first, first, seen, sampling_arrays(Sampling()), first)
            state = stop_row(state, first)
            for picked in self.scheduler.all_row_counts() if self._responsive else (None,):
                state, *_ = decode(self.model, self.weights, state, first, end_token, picked)

    def update(self, params: dict) -> None:
        """Replaces the weights, and drops what the old ones computed; see `release`."""
        self.release()
        self._weights = self._load(params)

    def release(self) -> None:
        """Frees the weights and what they computed: encoded media, and all keys and values.

        Earlier prompts become invalid. `update` must follow before the next prompt.

        Raises:
            RuntimeError: requests are running.
        """
        if not self.scheduler.idle:
            raise RuntimeError("Engine: requests are running; finish or cancel them first")
        self._weights = self._state = None
        self._version += 1
        self.media.clear()
        self.scheduler.reset()

    def prompt(self, conversation: Conversation) -> Prompt:
        """Encodes a conversation's media and lays the conversation out up to the answer; raises UserError."""
        return drain(self.prompt_pieces(conversation))

    def prompt_pieces(
        self, conversation: Conversation, load: Callable[[Media, bool], Loaded] | None = None
    ) -> Generator[None, None, Prompt]:
        """Like `prompt`; yields after each slice of media that is encoded, so that `step` can run between them.

        `load` is as in `MediaCache.encode`.
        """
        tiled, encoded = is_tiled(conversation), []
        for item in conversation.media:
            pieces = self.media.encode(self.weights.rest, item, tiled, load)
            while True:
                try:
                    with self._on_mesh(("group", None)):  # one group, whose tiles and windows all devices share
                        next(pieces)
                except StopIteration as end:
                    encoded.append(end.value)
                    break
                yield
        row = self.processor.lay_out(conversation, [item.size for item in encoded], generate=True)
        empty = np.zeros((0, self.model.config.text.hidden_size), self.model.compute.dtype)
        media = np.concatenate([empty, *(item.tokens for item in encoded)])
        media_ids = [item.id * 2**32 + np.arange(len(item.tokens)) for item in encoded]
        return make_prompt(row, media, np.concatenate([np.zeros(0, np.int64), *media_ids]), self._version)

    def encode(self, row: Row, tiles: Tiles, windows: Windows) -> Prompt:
        """Makes a prompt of a row that is laid out up to the answer and whose media are loaded; caches nothing."""
        with self._on_mesh(("group", None)):
            devices = self.mesh.size if self.mesh else 1
            media = encode_row(self.model, self.weights.rest, row, tiles, windows, devices)
        media_ids = self.media.new_id() * 2**32 + np.arange(len(media))
        return make_prompt(row, media, media_ids, self._version)

    def check_length(self, prompt: Prompt, new_tokens: int) -> None:
        """Raises UserError if prompt and answer need more positions than the model or a row has."""
        longest, media = self.model.config.text.max_position_embeddings, len(prompt.media)
        longest = min(longest, self._capacity or longest)
        if len(prompt) + new_tokens > longest:
            raise UserError(
                f"the prompt takes {len(prompt)} positions ({media} of media, {len(prompt) - media} of text) and the "
                f"answer up to {new_tokens}, but the model reads {longest}: at most {max(longest - new_tokens, 0)} are "
                "left for the prompt; shorten the media or the text, or lower max_new_tokens"
            )

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            UserError: it is too long.
            ValueError: its prompt was encoded with weights that `update` has replaced.
        """
        if request.prompt.weights_version != self._version:
            raise ValueError("the prompt was encoded with weights that Engine.update has replaced: make it again")
        self.check_length(request.prompt, request.sampling.max_new_tokens)
        self.scheduler.add(request)

    def cancel(self, request: Request) -> None:
        """Ends a request; another prompt may reuse the keys and values in its row."""
        row = self.scheduler.remove(request)
        if row is not None and self._state is not None:
            with self._on_mesh():
                self._state = stop_row(self._state, np.int32(row))

    def step(self, *, short: bool = False) -> Action | None:
        """Runs and returns the next action, at most a few tokens of all answers; None if there is nothing to do.

        `short` as in `Scheduler.next`.
        """
        action = self.scheduler.next(short=short)
        if action is None:
            return None
        try:
            with self._on_mesh():
                self._run(action)
        except BaseException:
            # The scheduler counts on the action, and the old state may be donated: after Ctrl-C too, neither is valid.
            self._state = None
            self.scheduler.reset()
            raise
        return action

    def wait(self) -> None:
        """Waits until the device has finished all actions."""
        jax.block_until_ready(self._state)

    def run(self, requests: Sequence[Request]) -> Generator[None]:
        """Submits requests and steps until all have finished; cancels the rest if the caller stops early."""
        try:
            for request in requests:
                self.submit(request)
            while not all(request.finish for request in requests):
                self.step()
                yield
        finally:
            for request in requests:
                if not request.finish:
                    self.cancel(request)

    def score(self, prompt: Prompt, answers: list[list[int]]) -> list[Float32[np.ndarray, " n"]]:
        """Returns the log-probabilities of each answer's tokens; the prompt is prefilled once."""
        request = Request(prompt, Sampling(max_new_tokens=max(map(len, answers))), prefill_only=True)
        self.submit(request)
        try:
            while (row := self.scheduler.row_on_hold(request)) is None:
                self.step()
            return [self._score(row, prompt, answer) for answer in answers]
        finally:
            self.cancel(request)

    def _run(self, action: Action) -> None:
        match action:
            case Resize(rows, capacity):
                self._resize(rows, capacity)
            case CopyRow(source, target):
                self._state = copy_row(self._state, np.int32(source), np.int32(target))
            case Prefill(pieces, width):
                self._prefill(pieces, width)
            case Start(row, request):
                self._start(row, request)
            case Decode(steps):
                self._decode(steps)

    def _resize(self, rows: tuple[int, ...], capacity: int) -> None:
        if self._state is None or all(row < 0 for row in rows):
            self._state = None  # freed first, so that memory holds only one state
            self._state = new_state(self.model.config.text, len(rows), capacity, self.model.compute.dtype)
            return
        state, self._state = self._state, None
        if rows != tuple(range(state.rows)):
            state = gather_rows(state, np.array(rows, np.int32))
        self._state = state if capacity == state.capacity else with_capacity(state, capacity)

    def _prefill(self, pieces: tuple[Piece, ...], width: int) -> None:
        tokens = np.zeros((len(pieces), width), np.int32)
        media = np.zeros((*tokens.shape, self.model.config.text.hidden_size), self.model.compute.dtype)
        for index, (_, start, end, request) in enumerate(pieces):
            if request:
                part = request.prompt.tokens[start:end]
                tokens[index, : end - start] = part
                first = int((request.prompt.tokens[:start] == MEDIA).sum())
                media[index, : end - start][part == MEDIA] = request.prompt.media[first:][: (part == MEDIA).sum()]
        rows, starts, ends = np.array([piece[:3] for piece in pieces], np.int32).T
        self._state = prefill(self.model, self.weights, self._state, rows, starts, ends, tokens, media)

    def _decode(self, steps: int) -> None:
        rows = self.scheduler.answering_rows() if self._responsive else None
        end_token = self.processor.tokenizer.eos_id
        self._state, *results = decode(
            self.model, self.weights, self._state, np.int32(steps), np.int32(end_token), rows
        )
        tokens, logprobs = (np.asarray(result)[:, :steps] for result in results)
        rows = np.arange(len(tokens)) if rows is None else rows
        self.scheduler.record(rows, tokens, logprobs, end_token, NO_TOKEN)

    def _start(self, row: int, request: Request) -> None:
        prompt = request.prompt
        seen = np.zeros(self.model.config.text.padded_vocab_size, bool)
        seen[prompt.tokens[prompt.tokens != MEDIA]] = True
        self._state = start_row(
            self._state,
            np.int32(row),
            np.int32(len(prompt) - 1),
            np.int32(prompt.tokens[-1]),
            seen,
            sampling_arrays(request.sampling, request.sample),
            np.int32(request.sampling.max_new_tokens),
        )

    def _score(self, row: int, prompt: Prompt, answer: list[int]) -> Float32[np.ndarray, " n"]:
        width, start = self.scheduler.prefill_widths[1], len(prompt) - 1
        batch = self.scheduler.rows
        per_shard = len(batch) // self._shards
        rows = np.arange(0, len(batch), per_shard, dtype=np.int32)
        starts = np.array([batch[index].length for index in rows], np.int32)
        shard = row // per_shard
        rows[shard] = row
        targets = np.zeros(-(-len(answer) // width) * width, np.int32)
        targets[: len(answer)] = answer
        tokens, found = np.insert(targets, 0, prompt.tokens[-1])[:-1], []
        for first in range(0, len(targets), width):
            starts[shard] = start + first
            part = (np.tile(values[first : first + width], (self._shards, 1)) for values in (tokens, targets))
            with self._on_mesh():
                self._state, logprobs = score(self.model, self.weights, self._state, rows, starts, *part)
            found.append(np.asarray(logprobs)[shard])
        return np.concatenate(found)[: len(answer)]

    def _load(self, params: dict) -> Weights:
        with self._on_mesh():
            if self.mesh:
                leaves = cast("dict[tuple[str, ...], jax.Array]", traverse_util.flatten_dict(params))
                flat = traverse_util.flatten_dict(shardings_of(self.model, self.mesh))
                shardings = cast("dict[tuple[str, ...], jax.sharding.Sharding]", flat)
                # Adapters stay where they are: they come from a training run on the same mesh.
                for path, sharding in shardings.items():
                    target = quantized_sharding(sharding) if is_quantized(leaves[path]) else sharding
                    leaves[path] = jax.device_put(leaves[path], target)
                params = traverse_util.unflatten_dict(leaves)
            return decoding_weights(self.model, params)

    def _on_mesh(self, *rules: tuple[str, str | None]) -> AbstractContextManager[None]:
        """Returns the context of the mesh, if any; `rules` take precedence over those of mesh/rules.py."""
        return on_mesh(self.mesh, rules) if self.mesh else nullcontext()
