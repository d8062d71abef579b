"""Multiple-choice questions about videos, of sports and medicine (Appendices B.2 and B.4, Tables 11, 12 and 14).

The input is a JSON list. Each item has `video`, `question`, `options` (a list of texts, or texts by letter) and
`answer` (the letter, or the text of the option); `category` and `system` are optional. `system` is the tennis prompt of
Figure 9, which describes the players.
"""

import json
import re
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from omnivinci_jax.av_world.generate import write_rows
from omnivinci_jax.downstream.rows import open_text, row
from omnivinci_jax.errors import DataError

_LETTERED = re.compile(r"\(?([A-Z])[.):]\s*")
# Figure 11 names four letters, although its data have three options an item.
_FEWEST_LETTERS = 4


def instruction(options: int) -> str:
    """Returns the instruction of Figure 11; it names more than four letters if there are more options."""
    letters = ", ".join(ascii_uppercase[: max(options, _FEWEST_LETTERS)])
    return (
        f"You will be asked multi-choice questions. Your replies must contain only a single letter (either {letters})."
    )


def convert(questions: Path, media: Path, categories: tuple[str, ...], out: Path) -> dict[str, int]:
    """Writes OUT/test.jsonl with one row per question, whose answer is a letter; returns their number.

    Args:
        questions: the JSON list.
        media: folder of the videos.
        categories: the categories that are known; () for any.
        out: the folder to write.

    Raises:
        DataError: not such a list, an unknown category, an answer that is no option, or a missing video.
    """
    try:
        items = json.loads(open_text(questions, "a JSON list of questions"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{questions}: not JSON: {error}") from None
    if not isinstance(items, list) or not items:
        raise DataError(f"{questions}: not a list of questions")
    rows = [_row(item, f"{questions}: item {index}", index, media, categories) for index, item in enumerate(items)]
    write_rows(out / "test.jsonl", rows)
    return {"test": len(rows)}


def _row(item: Any, where: str, index: int, media: Path, categories: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DataError(f"{where}: a question is a JSON object, not {type(item).__name__}")
    values = {name: item.get(name) for name in ("video", "question", "answer")}
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {name} is {value!r}, not a text; it has {', '.join(item)}")
    options = _options(item.get("options"), where)
    kind, system = item.get("category", "all"), item.get("system", "")
    if categories and kind not in categories:
        raise DataError(f"{where}: unknown category {kind!r}; known are {', '.join(categories)}")
    if not isinstance(kind, str) or not isinstance(system, str):
        raise DataError(f"{where}: category and system are texts")
    video = media / str(values["video"])
    if not video.is_file():
        raise DataError(f"{where}: {video}: no such video")
    letters = ascii_uppercase[: len(options)]
    listed = " ".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    text = f"{instruction(len(options))} {values['question']} {listed}"
    answer = _letter(str(values["answer"]).strip(), options, where)
    return row(f"{index:06d}", [("video", str(video.absolute())), ("text", text)], answer, kind, system) | {
        "options": options
    }


def _options(options: Any, where: str) -> list[str]:
    if isinstance(options, dict) and list(options) == list(ascii_uppercase[: len(options)]):
        options = list(options.values())
    if not isinstance(options, list) or not 2 <= len(options) <= len(ascii_uppercase):
        raise DataError(f"{where}: options are a list of 2 to 26 texts, or texts by letter from A")
    if not all(isinstance(option, str) and option.strip() for option in options):
        raise DataError(f"{where}: an option is empty or not a text")
    letters = [found[1] if (found := _LETTERED.match(option)) else "" for option in options]
    if letters == list(ascii_uppercase[: len(options)]):  # "A. Spine"
        return [_LETTERED.sub("", option, count=1) for option in options]
    return options


def _letter(answer: str, options: list[str], where: str) -> str:
    letters = ascii_uppercase[: len(options)]
    if answer in options:
        return letters[options.index(answer)]
    letter = found[1] if (found := _LETTERED.match(answer)) else answer
    if letter and letter in letters and len(letter) == 1:
        return letter
    raise DataError(f"{where}: the answer {answer!r} is neither a letter of {', '.join(letters)} nor an option")
