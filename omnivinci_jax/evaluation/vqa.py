"""VQA accuracy: what share of the people gave the model's answer, as VQA v2's evaluation script computes it."""

import re
from collections.abc import Sequence

_PUNCTUATION = ";:/'[]\"()=+\\_><@`,?"
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
# Words with an apostrophe that are also recognized without it.
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in (
        "ain't", "aren't", "can't", "could've", "couldn't", "didn't", "doesn't", "don't", "hadn't", "hasn't",
        "haven't", "he'd", "he's", "how'd", "how'll", "how's", "isn't", "it'd", "it'll", "ma'am", "mightn't",
        "might've", "mustn't", "must've", "needn't", "not've", "o'clock", "oughtn't", "shan't", "should've",
        "shouldn't", "somebody'll", "somebody's", "someone'd", "someone'll", "someone's", "something'd",
        "something'll", "that's", "there'd", "there're", "there's", "they'd", "they'll", "they're", "they've",
        "'twas", "wasn't", "we've", "weren't", "what'll", "what're", "what's", "what've", "when's", "where'd",
        "where's", "where've", "who'd", "who'll", "who's", "who've", "why'll", "why're", "why's", "won't",
        "would've", "wouldn't", "y'all", "you'd", "you'll", "you're", "you've",
    )
}  # fmt: skip


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """Returns the mean over the people of min(1, how many of the others gave this answer / 3)."""
    answer = _digits_and_articles(_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()))
    if len(set(people)) > 1:
        people = [_punctuation(text) for text in people]
    same = [text == answer for text in people]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)


def _punctuation(text: str) -> str:
    found = text
    for mark in _PUNCTUATION:
        removed = f"{mark} " in found or f" {mark}" in found or _COMMA_IN_NUMBER.search(found)
        text = text.replace(mark, "" if removed else " ")
    return _FULL_STOP.sub("", text)


def _digits_and_articles(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
