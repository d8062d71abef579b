"""Rules for captions and questions that need no model: refusals, language, lengths, options, near-duplicates."""

import hashlib
import re
import sqlite3
import zlib
from collections.abc import Sequence
from functools import cache
from string import ascii_uppercase
from typing import Any

import numpy as np
import py3langid
from jaxtyping import UInt64

from omnivinci_jax.data_engine.settings import QualityConfig

_REFUSAL = re.compile(
    r"^\W*(?:i'?m sorry|i am sorry|sorry,|i apologi[sz]e|unfortunately, i|as an ai"
    r"|i(?:'?m| am)? (?:can'?t|cannot|unable to|not able to) (?:help|assist|see|hear|view|watch|listen|access|describe"
    r"|provide|comply|process|do that))|\bas an ai (?:language )?model\b|\bas a (?:large )?language model\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
# Characters of scripts that put no spaces between words; each counts as half a word.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
# 16 bands of 4 hashes: captions that share half of their word triples agree in a band with 64 %, 0.8 with 99.98 %.
_BANDS, _HASHES = 16, 4
_PRIME = np.uint64((1 << 31) - 1)


def is_refusal(text: str) -> bool:
    """Returns whether a text begins as a refusal does, or speaks of itself as a language model."""
    return bool(_REFUSAL.search(text.replace("’", "'")))


def word_count(text: str) -> int:
    """Returns the number of words; two characters of Chinese, Japanese or Thai count as one."""
    unspaced = len(_UNSPACED.findall(text))
    return len(_WORD.findall(_UNSPACED.sub(" ", text))) + (unspaced + 1) // 2


def text_problem(text: str, config: QualityConfig, words: tuple[int, int]) -> str | None:
    """Returns why a text is dropped: its length or its language."""
    count = word_count(text)
    if not words[0] <= count <= words[1]:
        return "too short" if count < words[0] else "too long"
    if config.language and _language(text) != config.language:
        return "language"
    return None


def question_problems(questions: Sequence[dict[str, Any]], config: QualityConfig) -> list[str | None]:
    """Returns for each question of a segment why it is dropped, or None."""
    problems, kept = [], []
    for question in questions:
        words = frozenset(_WORD.findall(question["question"].casefold()))
        problem = _question_problem(question, config)
        if problem is None and any(_overlap(words, other) >= config.same_question for other in kept):
            problem = "near-duplicate question"
        if problem is None:
            kept.append(words)
        problems.append(problem)
    return problems


def _question_problem(question: dict[str, Any], config: QualityConfig) -> str | None:
    options, text = question["options"], question["question"]
    if is_refusal(text) or is_refusal(question["reasoning"]):
        return "refusal"
    if problem := text_problem(text, config, config.question_words):
        return problem
    if not options:
        return None
    if not config.options[0] <= len(options) <= config.options[1]:
        return "number of options"
    if len({" ".join(option.casefold().split()) for option in options}) < len(options):
        return "equal options"
    lengths = [len(option) for option in options]
    right = lengths.pop(ascii_uppercase.index(question["answer"]))
    # Readers choose the option that is longest by far without having seen anything.
    return "the right option is the longest by far" if right > config.longest_option * max(*lengths, 8) else None


def _overlap(one: frozenset, other: frozenset) -> float:
    return len(one & other) / max(len(one | other), 1)


class NearDuplicates:
    """Finds captions that are nearly the same as an earlier one, by MinHash; keeps them in a temporary file."""

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("CREATE TABLE captions (caption INTEGER PRIMARY KEY, name TEXT, signature BLOB)")
        self._database.execute("CREATE TABLE bands (band INTEGER PRIMARY KEY, caption INTEGER)")
        self._database.execute("BEGIN")

    def add(self, name: str, caption: str) -> str | None:
        """Returns the name of an earlier caption that is nearly the same; remembers the caption if there is none."""
        signature = _signature(caption)
        bands = [
            int.from_bytes(hashlib.blake2b(bytes([band]) + part.tobytes(), digest_size=7).digest(), "big")
            for band, part in enumerate(signature.reshape(_BANDS, _HASHES))
        ]
        marks = ",".join("?" * _BANDS)
        candidates = self._database.execute(
            f"SELECT name, signature FROM captions WHERE caption IN "
            f"(SELECT caption FROM bands WHERE band IN ({marks})) ORDER BY caption",
            bands,
        )
        for other, known in candidates:
            if (signature == np.frombuffer(known, np.uint64)).mean() >= self._threshold:
                return other
        inserted = self._database.execute(
            "INSERT INTO captions (name, signature) VALUES (?, ?)", (name, signature.tobytes())
        )
        pairs = [(band, inserted.lastrowid) for band in bands]
        self._database.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", pairs)
        return None


def _signature(text: str) -> UInt64[np.ndarray, " hashes"]:
    """Returns the MinHash of a text's word triples."""
    words = _WORD.findall(text.casefold())
    triples = {" ".join(words[index : index + 3]) for index in range(max(len(words) - 2, 1))}
    values = np.array([zlib.crc32(triple.encode()) for triple in triples], np.uint64) % _PRIME
    factors, offsets = _permutations()
    return ((values[:, None] * factors + offsets) % _PRIME).min(axis=0)


@cache
def _permutations() -> tuple[UInt64[np.ndarray, " hashes"], UInt64[np.ndarray, " hashes"]]:
    random = np.random.default_rng(0)
    draws = random.integers(1, int(_PRIME), (2, _BANDS * _HASHES)).astype(np.uint64)
    return draws[0], draws[1]


def _language(text: str) -> str:
    return str(py3langid.classify(text)[0])
