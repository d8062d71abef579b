"""Which option of a multiple-choice question an answer names: by its letter or by its text."""

import re
import unicodedata
from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

from omnivinci_jax.data.questions import Question

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
# "The answer is B", "Answer: (C)", "I choose option D"
_STATED = r"(?i:\b(?:answer|option|choice|choose|pick|select)\b(?:\s+(?:is|be|would\s+be))?\s*:?\s*(?:option\s+)?)\(?"
# "A" before a word is an article, and "I" a pronoun, unless "because" or the like follows.
_ARTICLE = re.compile(r"\b[AI]\s+(?!(?:because|since|as|is|and|or)\b)[a-z]")


class Choice(NamedTuple):
    """The option that an answer names, None if it is not one; `why` says what named it, or what is wrong."""

    index: int | None
    why: str


def find_option(answer: str, options: Sequence[str]) -> Choice:
    """Finds the option that an answer names.

    In this order: the whole answer is a letter or the text of an option; "the answer is B"; a capital letter that
    stands alone, or the text of an option, if there is only one of these. A letter inside a word, an article "A" and a
    pronoun "I" name nothing. Of a text with <answer>...</answer>, only the last of these counts.

    Args:
        answer: what the model said.
        options: their texts, without letters.
    """
    tagged = _ANSWER.findall(answer)
    text = unicodedata.normalize("NFKC", tagged[-1] if tagged else answer).replace("*", "").strip()
    texts = [unicodedata.normalize("NFKC", option) for option in options]
    if not text:
        return Choice(None, "the answer is empty")
    whole = Question("", tuple(texts)).option(text)
    if whole is not None:
        return Choice(whole, "the answer is the option")
    rest, named = _take_texts(text, texts)
    letters = ascii_uppercase[: len(options)]
    letter = rf"([{letters}])(?![\w'’-])"
    article = {found.start() for found in _ARTICLE.finditer(rest)}
    stated = [
        found for found in re.finditer(_STATED + letter, rest) if ":" not in found[0] or found.start(1) not in article
    ]
    if stated:
        return Choice(letters.index(stated[-1][1]), f"the answer states {stated[-1][1]}")
    alone = {
        found[1] for found in re.finditer(rf"(?<![\w'’-])(?<!\b[Nn]ot ){letter}", rest) if found.start(1) not in article
    }
    by_letter = {letters.index(name) for name in alone}
    found = by_letter | named
    if len(found) > 1:
        return Choice(None, "the answer names several options: " + ", ".join(letters[index] for index in sorted(found)))
    if not found:
        return Choice(None, "the answer names no option")
    return Choice(found.pop(), "the answer has its letter" if by_letter else "the answer has its text")


def _take_texts(text: str, options: Sequence[str]) -> tuple[str, set[int]]:
    """Returns the text without the options in it, longest first, and which they were.

    Options of one letter are left to the search for letters.
    """
    named = set()
    for index in sorted(range(len(options)), key=lambda index: -len(options[index])):
        option = options[index].strip().rstrip(".")
        if not option or (len(option) == 1 and option.isalpha() and option.isascii()):
            continue
        start = r"(?<!\w)(?<!\d[.,])" if option[0].isascii() else ""  # Chinese and others have no spaces
        end = r"(?!\w|[.,]\d)" if option[-1].isascii() else ""
        text, count = re.subn(start + re.escape(option) + end, "\0", text, flags=re.IGNORECASE)
        if count:
            named.add(index)
    return text, named
