"""Rows of the converted data sets, in the Hugging Face chat form, and the question about the class of a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from omnivinci_jax.errors import DataError
from omnivinci_jax.paths import atomic_file

Item = tuple[str, str]  # (type, text or path), the type as in a message: text, image, video or audio


def row(name: str, items: Sequence[Item], answer: str, kind: str, system: str = "") -> dict[str, Any]:
    """Returns a conversation of one question, whose items stand in the given order, and its answer."""
    content = [{"type": kind_of_item, kind_of_item: value} for kind_of_item, value in items]
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": messages, "kind": kind}


def class_question(classes: Sequence[str]) -> str:
    """Returns the question of Figure 13."""
    return f"What class do these images belong to? The possible classes are: {', '.join(classes)}."


def picture_row(
    out: Path, name: str, picture: UInt8[np.ndarray, "h w 3"], question: str, answer: str
) -> dict[str, Any]:
    """Writes OUT/images/NAME.png; returns the question about it. The answer is also the row's kind."""
    path = out / "images" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        Image.fromarray(picture).save(part, "png", compress_level=1)
    return row(name, [("image", f"images/{path.name}"), ("text", question)], answer, answer)


def open_text(path: Path, what: str) -> str:
    """Reads a UTF-8 file; raises DataError, which says `what` it should be, if there is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {what}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give {what}") from None
