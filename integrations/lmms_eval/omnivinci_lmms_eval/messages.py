"""Turns a question of lmms-eval, a text with media, into a message of OpenAI's chat API: every item in its place."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

_KINDS = {
    "image": ("avif", "bmp", "gif", "heic", "jpeg", "jpg", "png", "tiff", "webp"),
    "audio": ("aac", "flac", "m4a", "mp3", "oga", "ogg", "opus", "wav"),
    "video": ("avi", "flv", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "webm", "wmv"),
}
_PLACE = re.compile(r"<(image|audio|video)(?: (\d+))?>")  # "<image>", and MMMU's "<image 2>"
_RATE = 16000  # of sounds that lmms-eval passes without one


def message(text: str, media: Any, by_path: bool = False) -> dict[str, Any]:
    """Returns the user's message: each item where the text has its placeholder, and the others before the text.

    Placeholders of a kind count if there are as many of them as items; otherwise they are text.

    Args:
        text: the question.
        media: what the task's `doc_to_visual` returns: paths, images of PIL, sounds as arrays, dictionaries or
            torchcodec's objects, in lists of any depth.
        by_path: send paths as file:// URLs, which the server must be allowed to read, instead of the files.

    Raises:
        ValueError: an item is none of these, or its file is not there; the message says which.
    """
    parts = [_part(item, by_path) for item in _flat(media)]
    waiting = {kind: [part for part in parts if part["type"] == f"{kind}_url"] for kind in _KINDS}
    places = _places(text, {kind: len(items) for kind, items in waiting.items()})
    placed = {found.start(): waiting[found[1]][index] for found, index in places}
    content, start = [part for part in parts if not any(part is other for other in placed.values())], 0
    for found, _ in places:
        content += [{"type": "text", "text": text[start : found.start()]}, placed[found.start()]]
        start = found.end()
    content.append({"type": "text", "text": text[start:]})
    return {"role": "user", "content": [part for part in content if part != {"type": "text", "text": ""}]}


def _places(text: str, counts: dict[str, int]) -> list[tuple[re.Match[str], int]]:
    """Returns the placeholders that stand for items, in order, with the index of each one's item."""
    places = []
    for kind, count in counts.items():
        found = [match for match in _PLACE.finditer(text) if match[1] == kind]
        numbers = {int(match[2]): match for match in reversed(found) if match[2]}  # the first mention of each
        plain = [match for match in found if not match[2]]
        for matches in (plain, [numbers[number] for number in sorted(numbers)]):
            if count and len(matches) == count:
                places += [(match, index) for index, match in enumerate(matches)]
                break
    return sorted(places, key=lambda place: place[0].start())


def _flat(media: Any) -> list[Any]:
    if isinstance(media, list | tuple):
        return [item for part in media for item in _flat(part)]
    return [] if media is None else [media]


def _part(item: Any, by_path: bool) -> dict[str, Any]:
    if isinstance(item, Image.Image):
        image = item if item.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else item.convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return _data("image", "png", buffer.getvalue())
    if isinstance(item, str | Path):
        return _file(Path(item), by_path)
    if isinstance(item, dict) and item.get("bytes"):
        return _data("audio", Path(item.get("path") or "").suffix[1:].lower() or "wav", item["bytes"])
    if isinstance(item, dict) and isinstance(item.get("path"), str) and "array" not in item:
        return _file(Path(item["path"]), by_path)
    buffer = io.BytesIO()
    array, rate = _waveform(item)
    soundfile.write(buffer, array, rate, format="WAV", subtype="FLOAT")
    return _data("audio", "wav", buffer.getvalue())


def _waveform(item: Any) -> tuple[np.ndarray, int]:
    """Returns a decoded sound, samples first, and its rate in Hz."""
    if hasattr(item, "get_all_samples"):  # torchcodec's AudioDecoder
        item = item.get_all_samples()
    if hasattr(item, "data") and hasattr(item, "sample_rate"):  # torchcodec's AudioSamples: channels first
        return np.asarray(item.data, np.float32).T, int(item.sample_rate)
    rate = _RATE
    if isinstance(item, dict) and "array" in item:
        item, rate = item["array"], item.get("sampling_rate") or _RATE
    if not isinstance(item, np.ndarray | list) or not np.size(item) or np.ndim(item) > 2:
        raise ValueError(f"a media item of type {type(item).__name__} is no path, image or sound")
    array = np.asarray(item)
    if array.dtype.kind == "i":
        array = array / -float(np.iinfo(array.dtype).min)
    array = array.astype(np.float32)
    return (array.T if array.ndim == 2 and array.shape[0] < array.shape[1] else array), int(rate)


def _file(path: Path, by_path: bool) -> dict[str, Any]:
    suffix = path.suffix[1:].lower()
    kind = next((kind for kind, suffixes in _KINDS.items() if suffix in suffixes), None)
    if not kind:
        raise ValueError(f"{path}: is no image, sound or video by its name")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if by_path:
        return {"type": f"{kind}_url", f"{kind}_url": {"url": path.absolute().as_uri()}}
    return _data(kind, suffix, path.read_bytes())


def _data(kind: str, form: str, content: bytes) -> dict[str, Any]:
    url = f"data:{kind}/{form};base64,{base64.b64encode(content).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
