"""Turns tokens into answers: streamed text, stop texts, and timing."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, NamedTuple

from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Prompt, Request, Sampling
from omnivinci_jax.sequence.tokenizer import Tokenizer

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what an incomplete UTF-8 character decodes to


@dataclass(frozen=True)
class Answer:
    """An answer, complete or so far.

    text: without the stop text. tokens: token ids, without the end token.
    finish: what ended it: the model's end token, a stop text, or `max_new_tokens`; None while it is incomplete.
    prompt_tokens: positions of the prompt, media included.
    first_token_seconds: time from the question to the first token of the batch.
    tokens_per_second: rate of the whole batch after its first token; 0 for a single token.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Literal["end", "stop", "length"] | None
    prompt_tokens: int
    first_token_seconds: float
    tokens_per_second: float


class Piece(NamedTuple):
    """More text of an answer, and the index of that answer."""

    answer: int
    text: str


class Stream:
    """Streams answers: iterate over pieces of text; `answers` has the answers so far."""

    def __init__(self, engine: Engine, prompts: list[Prompt], sampling: Sampling, samples: int, began: float):
        """Computes nothing until iteration starts. `began` is `time.monotonic()` when the question arrived."""
        self._engine = engine
        requests = [Request(prompt, sampling, sample) for prompt in prompts for sample in range(samples)]
        self._transcripts = [Transcript(engine.processor.tokenizer, request) for request in requests]
        self._began, self._last = began, began
        self._first: float | None = None

    def __iter__(self) -> Generator[Piece]:
        """Yields pieces of text as they are decoded."""
        with closing(self._engine.run([transcript.request for transcript in self._transcripts])) as steps:
            for _ in steps:
                for index, transcript in enumerate(self._transcripts):
                    if not transcript.has_more:
                        continue
                    self._last = time.monotonic()
                    self._first = self._first or self._last
                    text = transcript.read()
                    if transcript.finish == "stop":
                        self._engine.cancel(transcript.request)
                    if text:
                        yield Piece(index, text)

    @property
    def answers(self) -> list[Answer]:
        """All answers so far."""
        first = self._first or self._last
        later = sum(max(len(transcript.tokens) - 1, 0) for transcript in self._transcripts)
        rate = later / (self._last - first) if self._last > first else 0.0
        return [
            Answer(item.text, tuple(item.tokens), item.finish, item.prompt_tokens, first - self._began, rate)
            for item in self._transcripts
        ]


class Transcript:
    """Decodes the tokens of a request to text incrementally.

    Its `tokens`, `text` and `finish` are those of an Answer so far.
    """

    def __init__(self, tokenizer: Tokenizer, request: Request):
        self._tokenizer, self.request = tokenizer, request
        self.tokens: list[int] = []
        self.text = ""
        self.finish: Literal["end", "stop", "length"] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Positions of the prompt, media included."""
        return len(self.request.prompt)

    @property
    def has_more(self) -> bool:
        """Whether the request has unread tokens."""
        return not self.finish and len(self.request.tokens) > len(self.tokens)

    def read(self) -> str:
        """Reads the new tokens; returns the new text that later tokens cannot change."""
        self.tokens = list(self.request.tokens)
        self.finish = None if self.request.finish == "cancelled" else self.request.finish
        if self.finish == "end":
            self.tokens.pop()
        return self._more()

    def _more(self) -> str:
        text, stops = self._tokenizer.decode(self.tokens), self.request.sampling.stop
        found = [start for stop in stops if (start := text.find(stop)) >= 0]
        if found:
            text, self.finish = text[: min(found)], "stop"
        elif not self.finish:
            text = text.rstrip(_INCOMPLETE)
            text = text[: len(text) - max((_partial_stop(text, stop) for stop in stops), default=0)]
        before, self.text = len(self.text), text
        return text[before:]


def _partial_stop(text: str, stop: str) -> int:
    """Returns the length of the longest proper prefix of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
