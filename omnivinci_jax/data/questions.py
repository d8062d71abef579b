"""The question that a record asks: its right answer and its options, which rewards and metrics use."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from omnivinci_jax.errors import DataError
from omnivinci_jax.sequence.references import shown

_SOLUTION = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?", re.IGNORECASE)
_LABELLED = re.compile(r"\(?([A-Z])(?:\)|[.:])\s*(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Question:
    """The right answer, and the texts of the options in order, without their letters; none if the answer is free."""

    answer: str
    options: tuple[str, ...] = ()

    def is_right(self, answer: str) -> bool:
        """Returns whether an answer is the letter of the right option, its text, or both; or the right free text.

        Case, white space and a final full stop do not matter. A single letter is always the letter of an option.
        """
        if not self.options:
            return plain(answer) == plain(self.answer)
        return self.option(answer) == self.option(self.answer) is not None

    def option(self, answer: str) -> int | None:
        """Returns the index of the option that an answer names."""
        texts, answer = [plain(option) for option in self.options], answer.strip()
        if found := _LETTER.fullmatch(answer):
            return self._index(found[1])
        if plain(answer) in texts:
            return texts.index(plain(answer))
        if found := _LABELLED.fullmatch(answer):
            index = self._index(found[1])
            return index if index is not None and texts[index] == plain(found[2]) else None
        return None

    def _index(self, letter: str) -> int | None:
        index = ord(letter.upper()) - ord("A")
        return index if index < len(self.options) else None


def read_question(record: dict[str, Any], where: str) -> Question:
    """Reads a record's `answer` or `solution`, which may be in <answer> tags, and its `options`.

    Raises:
        DataError: there is no answer, or it is none of the options; the message starts with `where`.
    """
    key = "solution" if "answer" not in record and "solution" in record else "answer"
    answer, options = record.get(key), record.get("options") or []
    if not isinstance(answer, str) or not answer.strip():
        given = f"{key!r} is {shown(answer)}" if key in record else 'there is no "answer" beside the messages'
        raise DataError(f"{where}: {given}: give the right answer as a text")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise DataError(f"{where}: 'options' must be a list of texts: {shown(options)}")
    if found := _SOLUTION.fullmatch(answer):
        answer = found[1]
    question = Question(answer.strip(), tuple(without_letters(options)))
    if options and not question.is_right(answer):
        raise DataError(f"{where}: the {key} {shown(answer)} is none of the options {shown(options)}")
    return question


def without_letters(options: Sequence[str]) -> list[str]:
    """Returns the options; removes "A. ", "B. ", ... if every option begins with its letter."""
    labelled = [_LABELLED.fullmatch(option.strip()) for option in options]
    letters = "".join(found[1].upper() for found in labelled if found)
    if letters == ascii_uppercase[: len(options)]:
        return [found[2] for found in labelled if found]
    return list(options)


def plain(text: str) -> str:
    """Returns a text without case, extra white space and a final full stop."""
    return " ".join(text.split()).rstrip(".").casefold()
