"""Tokens to answers: text as it comes, stop texts, and how long it took."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from omnivinci_jax.generate.engine import Engine, Prompt
from omnivinci_jax.generate.sampling import Sampling
from omnivinci_jax.sequence.tokenizer import Tokenizer

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a part of a character's bytes decodes to


@dataclass(frozen=True)
class Answer:
    """An answer, whole or as far as it has come.

    text: without the stop text. tokens: their ids, without the end token.
    finish: what ended it: the model's end token, a stop text, or `max_new_tokens`; None where nothing has.
    prompt_tokens: positions that the prompt takes, media included.
    first_token_seconds: from the prompt's laying out to the first token.
    tokens_per_second: after the first, over all answers made together; 0 where there is one token.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Literal["end", "stop", "length"] | None
    prompt_tokens: int
    first_token_seconds: float
    tokens_per_second: float


class Piece(NamedTuple):
    """More text of an answer, and that answer's number."""

    answer: int
    text: str


class Stream:
    """Answers while they come: iterate over their pieces of text; `answers` is what there is so far."""

    def __init__(self, engine: Engine, prompts: list[Prompt], sampling: Sampling, samples: int, began: float):
        """Computes nothing before the first piece is asked for; `began`: when the question was asked (monotonic)."""
        self._turns = engine.tokens(prompts, sampling, samples)
        self._transcripts = [
            _Transcript(engine.processor.tokenizer, sampling, len(prompt)) for prompt in prompts for _ in range(samples)
        ]
        self._began, self._first, self._last = began, None, began

    def __iter__(self) -> Iterator[Piece]:
        """Pieces of text in the order in which they come."""
        try:
            for turn in self._turns:
                self._last = time.monotonic()
                self._first = self._first or self._last
                for number, (transcript, tokens) in enumerate(zip(self._transcripts, turn, strict=True)):
                    if text := transcript.add(tokens):
                        yield Piece(number, text)
                if all(transcript.finish for transcript in self._transcripts):
                    break
        finally:
            self._turns.close()

    @property
    def answers(self) -> list[Answer]:
        """Every answer as far as it has come."""
        first = self._first or self._last
        later = sum(len(transcript.tokens) - 1 for transcript in self._transcripts)
        rate = later / (self._last - first) if self._last > first else 0.0
        return [
            Answer(item.text, tuple(item.tokens), item.finish, item.prompt_tokens, first - self._began, rate)
            for item in self._transcripts
        ]


class _Transcript:
    """One answer's tokens and the text that they have come to."""

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling, prompt_tokens: int):
        self._tokenizer, self._sampling, self.prompt_tokens = tokenizer, sampling, prompt_tokens
        self.tokens: list[int] = []
        self.text, self.finish = "", None

    def add(self, tokens: list[int]) -> str:
        """Takes more tokens; returns the text that is new and certain."""
        for token in tokens:
            if self.finish:
                return ""
            if token == self._tokenizer.eos_id:
                self.finish = "end"
            else:
                self.tokens.append(token)
                if len(self.tokens) == self._sampling.max_new_tokens:
                    self.finish = "length"
        return self._more()

    def _more(self) -> str:
        text, stops = self._tokenizer.decode(self.tokens), self._sampling.stop
        found = [place for stop in stops if (place := text.find(stop)) >= 0]
        if found:
            text, self.finish = text[: min(found)], "stop"
        elif not self.finish:
            text = text.rstrip(_INCOMPLETE)
            text = text[: len(text) - max((_begun(text, stop) for stop in stops), default=0)]
        shown, self.text = len(self.text), text
        return text[shown:]


def _begun(text: str, stop: str) -> int:
    """How many of a stop text's first characters the text ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
