"""Decides what the engine does next: which request gets which row, which rows prefill or decode. Does not import jax.

Decisions depend on the requests and on step counts, never on a clock, so processes with the same requests decide the
same.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Int64

from omnivinci_jax.generate.request import Request

PREFILL_WIDTHS = (256, 32)  # slots of a row that one prefill step fills
SMALL_PREFILL_WIDTHS = (64, 32)
MIN_CAPACITY = 1024
MAX_ROWS = 64
_SHORT_STEPS = 4  # decode steps between two prefill steps
_MIN_COPIED_SLOTS = 32  # a shorter common prefix is prefilled again instead of copied


class Resize(NamedTuple):
    """Rebuild the batch from these of its rows (-1: an empty row), with `capacity` slots each."""

    rows: tuple[int, ...]
    capacity: int


class CopyRow(NamedTuple):
    """Copy a row's slots to another row."""

    source: int
    target: int


class Piece(NamedTuple):
    """Slots `start` to `end` of a row, to be filled from its request's prompt; none if they are equal."""

    row: int
    start: int
    end: int
    request: Request | None


class Prefill(NamedTuple):
    """Fill a piece of one row in each batch shard, none longer than `width`."""

    pieces: tuple[Piece, ...]
    width: int


class Start(NamedTuple):
    """Let a row decode: its slots hold the prompt except its last token."""

    row: int
    request: Request


class Decode(NamedTuple):
    """Decode up to `steps` tokens in every answering row."""

    steps: int


Action = Resize | CopyRow | Prefill | Start | Decode


@dataclass(eq=False)
class _Row:
    """A row of the batch.

    content: `Prompt.identity` of each filled slot; while the row decodes, only of its prompt.
    phase: an idle row keeps its content for a prompt with the same prefix; a row on hold is prefilled but not decoded.
    request: the request in this row; None if it is idle.
    used: when it was last assigned, counted in requests.
    """

    content: Int64[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    phase: Literal["idle", "prefill", "hold", "decode"] = "idle"
    request: Request | None = None
    used: int = -1

    @property
    def work(self) -> Request:
        """The request of a row that is not idle."""
        assert self.request is not None
        return self.request

    @property
    def length(self) -> int:
        """Number of filled slots."""
        return len(self.content) + (len(self.work.tokens) if self.phase == "decode" else 0)


def capacity_for(slots: int) -> int:
    """Rounds a number of slots up to a row capacity, 2^k or 3·2^k, so that few programs serve all prompts."""
    power = 1 << (slots - 1).bit_length()
    return max(MIN_CAPACITY, power * 3 // 4 if slots <= power * 3 // 4 else power)


class Scheduler:
    """Queues requests: each gets a row, reuses the prefix of its prompt in this or another row, and frees the row."""

    def __init__(
        self,
        *,
        shards: int = 1,
        decode_steps: int = 16,
        rows: int | None = None,
        capacity: int | None = None,
        prefill_widths: tuple[int, int] = PREFILL_WIDTHS,
    ):
        """Starts with an empty batch.

        Args:
            shards: batch shards of the mesh; the number of rows is a multiple of it.
            decode_steps: maximum steps of one Decode.
            rows: rows of the batch; None for as many as the requests need, up to MAX_ROWS.
            capacity: slots of a row; None for as many as the requests need.
            prefill_widths: slots that one Prefill fills, for long and for short prompts.
        """
        self.prefill_widths = prefill_widths
        rows = rows and -(-rows // shards) * shards
        self._shards, self._decode_steps, self._fixed = shards, decode_steps, (rows, capacity)
        self.rows: list[_Row] = []
        self.capacity = 0
        self._waiting: deque[Request] = deque()
        self._admitted, self._decoded_last = 0, True

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and all(row.phase == "idle" for row in self.rows)

    def add(self, request: Request) -> None:
        """Queues a request."""
        self._waiting.append(request)

    def remove(self, request: Request) -> int | None:
        """Cancels a request; returns the row that becomes idle, or None if it had none."""
        request.finish = request.finish or "cancelled"
        if request in self._waiting:
            self._waiting.remove(request)
            return None
        index = next((index for index, row in enumerate(self.rows) if row.request is request), None)
        if index is not None:
            self._free(self.rows[index])
        return index

    def row_on_hold(self, request: Request) -> int | None:
        """Returns the row of a `prefill_only` request once its prompt is prefilled; None before."""
        held = (index for index, row in enumerate(self.rows) if row.request is request and row.phase == "hold")
        return next(held, None)

    def reset(self) -> None:
        """Handles the loss of the batch: removes all rows and cancels their requests, if any."""
        for row in self.rows:
            if row.request:
                row.request.finish = "cancelled"
        self.rows, self.capacity = [], 0

    def next(self, *, short: bool = False) -> Action | None:
        """Returns the next action, or None if there is nothing to do. The caller must run it before the next call.

        `short`: decode only a few tokens, as between two steps of prefill, because the caller has other work to do.
        """
        if action := self._resize() or self._admit():
            return action
        for index, row in enumerate(self.rows):
            if row.phase == "prefill" and len(row.content) == len(row.work.prompt) - 1:
                row.phase = "hold" if row.work.prefill_only else "decode"
                if row.phase == "decode":
                    return Start(index, row.work)
        filling = any(row.phase == "prefill" for row in self.rows)
        if any(row.phase == "decode" for row in self.rows) and not (filling and self._decoded_last):
            self._decoded_last = True
            return Decode(self._steps(short or filling))
        self._decoded_last = False
        return self._prefill() if filling else None

    @property
    def fixed_size(self) -> tuple[int, int]:
        """The rows and the capacity that were given; raises ValueError if they were not."""
        rows, capacity = self._fixed
        if not (rows and capacity):
            raise ValueError("Scheduler: rows and capacity depend on the requests")
        return rows, capacity

    def answering_rows(self) -> Int32[np.ndarray, " R"]:
        """Returns the rows of the next Decode, as many in each shard: those that decode, and others up to 2^k."""
        decoding = np.array([row.phase == "decode" for row in self.rows])
        return self._first_rows(decoding, int(decoding.reshape(self._shards, -1).sum(axis=1).max()))

    def all_row_counts(self) -> list[Int32[np.ndarray, " R"]]:
        """Returns an example of each length that `answering_rows` can have, if the size is fixed."""
        rows, _ = self.fixed_size
        return [self._first_rows(np.ones(rows, bool), 2**k) for k in range((rows // self._shards - 1).bit_length() + 1)]

    def _first_rows(self, decoding: Bool[np.ndarray, " B"], count: int) -> Int32[np.ndarray, " R"]:
        """Returns at least `count` rows of each shard, those that decode first."""
        rows = np.arange(len(decoding), dtype=np.int32).reshape(self._shards, -1)
        order = np.argsort(~decoding.reshape(rows.shape), axis=1, kind="stable")
        return np.take_along_axis(rows, order[:, : 1 << (max(count, 1) - 1).bit_length()], axis=1).reshape(-1)

    def record(
        self,
        rows: Int[np.ndarray, " R"],
        tokens: Int[np.ndarray, "R steps"],
        logprobs: Float[np.ndarray, "R steps"],
        end_token: int,
        none: int,
    ) -> None:
        """Records the result of a Decode: the tokens of these rows up to the first `none`."""
        for index, row_tokens, row_logprobs in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row = self.rows[index]
            if row.phase != "decode":
                continue
            request, count = row.work, (row_tokens.index(none) if none in row_tokens else len(row_tokens))
            request.tokens += row_tokens[:count]
            request.logprobs += row_logprobs[:count]
            if request.tokens and request.tokens[-1] == end_token:
                request.finish = "end"
            elif len(request.tokens) >= request.sampling.max_new_tokens:
                request.finish = "length"
            if request.finish:
                self._free(row)

    def _free(self, row: _Row) -> None:
        if row.phase == "decode":
            # The first decode step cached the prompt's last token; the answer's last token was never cached.
            decoded = [row.work.prompt.identity[-1:], np.array(row.work.tokens[:-1], np.int64)]
            row.content = np.concatenate([row.content, *decoded])[: row.length]
        row.request, row.phase = None, "idle"

    def _steps(self, short: bool) -> int:
        """Returns as many steps as the youngest answer has tokens: fast first tokens, few calls for long answers."""
        answers = [row.work for row in self.rows if row.phase == "decode"]
        youngest = max(1, min(len(request.tokens) for request in answers))
        longest = max(request.sampling.max_new_tokens - len(request.tokens) for request in answers)
        return min(youngest, longest, _SHORT_STEPS if short else self._decode_steps, self._decode_steps)

    def _prefill(self) -> Prefill:
        per_shard, pieces = len(self.rows) // self._shards, []
        for first in range(0, len(self.rows), per_shard):
            shard = range(first, first + per_shard)
            index = min(
                (index for index in shard if self.rows[index].phase == "prefill"),
                key=lambda index: self.rows[index].used,
                default=first,
            )
            row = self.rows[index]
            request = row.request if row.phase == "prefill" else None
            pieces.append(Piece(index, row.length, len(request.prompt) - 1 if request else row.length, request))
        longest = max(piece.end - piece.start for piece in pieces)
        wide, narrow = self.prefill_widths
        width = wide if longest > wide // 2 else narrow
        pieces = [piece._replace(end=min(piece.end, piece.start + width)) for piece in pieces]
        for piece in pieces:
            if piece.request:
                self.rows[piece.row].content = piece.request.prompt.identity[: piece.end]
        return Prefill(tuple(pieces), width)

    def _admit(self) -> CopyRow | None:
        """Assigns rows to waiting requests; stops at the first that needs a copied row."""
        for request in list(self._waiting):
            free = [index for index, row in enumerate(self.rows) if row.phase == "idle"]
            if not free:
                return None
            prompt = request.prompt.identity[:-1]
            common = [_common_prefix(row.content, prompt) for row in self.rows]
            coming = [
                _common_prefix(row.work.prompt.identity[:-1], prompt) if row.phase == "prefill" else 0
                for row in self.rows
            ]
            source = max(range(len(self.rows)), key=lambda index: common[index])
            if max(coming) >= common[source] + _MIN_COPIED_SLOTS:
                continue  # a row that is being prefilled will have a longer prefix of this request
            target = min(free, key=lambda index: (-common[index], self._busy(index), self.rows[index].used))
            copy = common[source] >= common[target] + _MIN_COPIED_SLOTS
            row, length = self.rows[target], common[source if copy else target]
            self._waiting.remove(request)
            row.content, row.phase, row.request, row.used = prompt[:length], "prefill", request, self._admitted
            self._admitted += 1
            if copy:
                return CopyRow(source, target)
        return None

    def _busy(self, index: int) -> int:
        """Returns how many rows of the same shard are being prefilled; they are filled one after the other."""
        per_shard = len(self.rows) // self._shards
        first = index // per_shard * per_shard
        return sum(row.phase == "prefill" for row in self.rows[first : first + per_shard])

    def _resize(self) -> Resize | None:
        """Returns a resize if the waiting requests need one; a busy batch only grows."""
        if not self._waiting:
            return None
        busy = [index for index, row in enumerate(self.rows) if row.request]
        needed = [*self._waiting, *(self.rows[index].work for index in busy)]
        rows, capacity = self._fixed
        rows = rows or -(-min(MAX_ROWS, 1 << (len(needed) - 1).bit_length()) // self._shards) * self._shards
        capacity = capacity or capacity_for(max(request.slots for request in needed))
        if busy:
            kept = list(range(len(self.rows)))
            rows, capacity = max(rows, len(kept)), max(capacity, self.capacity)
        else:
            reusable = {index: self._reusable_slots(row) for index, row in enumerate(self.rows)}
            if self.capacity > capacity and any(reusable.values()):
                capacity = self.capacity
            same = capacity == self.capacity
            order = sorted(reusable, key=lambda index: (-reusable[index], -self.rows[index].used))
            kept = sorted(index for index in order[:rows] if same or reusable[index])
        if (rows, capacity) == (len(self.rows), self.capacity):
            return None
        if capacity < self.capacity:
            kept = []
        kept += [-1] * (rows - len(kept))
        self.rows = [_Row() if index < 0 else self.rows[index] for index in kept]
        self.capacity = capacity
        return Resize(tuple(kept), capacity)

    def _reusable_slots(self, row: _Row) -> int:
        """Returns the slots of a row that a waiting request can reuse, if they are at least half of its prompt.

        A row longer than needed makes each token slower, which a few common slots do not justify.
        """
        common = (
            (_common_prefix(row.content, request.prompt.identity[:-1]), len(request.prompt))
            for request in self._waiting
        )
        return max((slots for slots, length in common if slots and slots >= length // 2), default=0)


def _common_prefix(one: Int64[np.ndarray, " n"], other: Int64[np.ndarray, " m"]) -> int:
    """Returns the length of the common prefix of two arrays."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter
