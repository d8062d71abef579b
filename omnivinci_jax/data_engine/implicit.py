"""Implicit omni-modal data (Section 3.2): video questions as published, with the sound of their videos kept.

Reads LLaVA-Video, ShareGPT lists and the other forms of sequence/forms.py, and tells by levels which files have sound.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from omnivinci_jax.data.records import Entry, Jsonl
from omnivinci_jax.data_engine.clips import source_identity
from omnivinci_jax.data_engine.store import Store, digest
from omnivinci_jax.errors import DataError, MediaError, describe
from omnivinci_jax.media.decode import probe_video
from omnivinci_jax.media.levels import SILENCE, content_of, seconds_of, sound_levels
from omnivinci_jax.paths import atomic_file
from omnivinci_jax.sequence.chat import Conversation, Media
from omnivinci_jax.sequence.forms import parse_conversation

VERSION = 1  # raise it when the same file gives another description

_KEPT = ("id", "kind", "answer", "solution", "options", "data_source")
_AUDIBLE = ("varied", "steady")
_MEANING = {
    "varied": "pauses as speech does",
    "steady": "music, noise or a hum, by its levels alone",
    "silent": f"no second above {SILENCE:.0f} dB",
    "none": "no sound stream",
    "unreadable": "",
}


def convert(questions: Path, videos: Path, out: Path, store: Store, threads: int) -> str:
    """Writes the questions as conversations and a report on the sound of their videos; returns its counts.

    `with_sound.jsonl` has the questions about videos with sound worth keeping, `without_sound.jsonl` the others,
    `skipped.jsonl` the lines that cannot be used, and `sounds.jsonl` a line for each file.

    Raises:
        DataError: `questions` cannot be read.
    """
    data = Jsonl(questions)
    entries, out = data.entries(), out.absolute()
    folder = videos.absolute()
    counts, records = Counter(), Counter()
    with ExitStack() as stack:
        names = ("with_sound", "without_sound", "skipped", "sounds")
        parts = {name: stack.enter_context(atomic_file(out / f"{name}.jsonl")) for name in names}
        files = {
            name: stack.enter_context(open(part, "w", encoding="utf-8", errors="backslashreplace"))
            for name, part in parts.items()
        }

        def write(name: str, record: dict[str, Any]) -> None:
            files[name].write(json.dumps(record, ensure_ascii=False) + "\n")

        described = _describe_all((path for path in _paths(data, entries, folder)), folder, store, threads)
        sounds: dict[str, str] = {}
        for path, sound in described:
            sounds[path] = sound["content"]
            counts[sound["content"]] += 1
            write("sounds", {"source": os.path.relpath(path, folder)} | sound)
        for entry in entries:
            try:
                record, conversation = _read(data, entry, folder)
                contents = {sounds[item.path] for item in conversation.media if item.kind == "video"}
                if not contents:
                    raise DataError("is not about a video")
                if "unreadable" in contents:
                    raise DataError("its video cannot be read; sounds.jsonl says why")
            except DataError as error:
                records["skipped"] += 1
                write("skipped", {"line": entry.line, "reason": describe(error)})
                continue
            name = "with_sound" if contents & set(_AUDIBLE) else "without_sound"
            records[name] += 1
            write(name, _record(conversation, out) | {key: record[key] for key in _KEPT if key in record})
    lines = ["| conversations | |", "|---|---|", *(f"| {name} | {records[name]:,} |" for name in names[:3])]
    lines += ["", "| sound | files | |", "|---|---|---|"]
    lines += [f"| {name} | {counts[name]:,} | {meaning} |" for name, meaning in _MEANING.items()]
    table = "\n".join(lines)
    with atomic_file(out / "sound.md") as part:
        part.write_text(f"# Sound of {questions.name}\n\n{table}\n", encoding="utf-8")
    return table


def describe_sound(path: Path) -> dict[str, Any]:
    """Returns the content of a file's sound by its levels, its seconds, and how many of them are not silent."""
    try:
        info = probe_video(path)
        levels = sound_levels(path) if info.audio_seconds else None
    except MediaError as error:
        return {"content": "unreadable", "reason": str(error)}
    if levels is None:
        return {"content": "none", "seconds": round(info.duration, 2)}
    seconds = seconds_of(levels)
    return {
        "content": content_of(levels),
        "seconds": round(info.duration, 2),
        "audible_seconds": sum(level > SILENCE for level in seconds),
        "loudest_db": max(seconds, default=-100),
    }


def _describe_all(
    paths: Iterable[str], folder: Path, store: Store, threads: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each file with the description of its sound, in order; those in the store are not read again."""
    waiting: list[tuple[str, bytes, Future[dict[str, Any]] | dict[str, Any]]] = []
    with ThreadPoolExecutor(threads) as pool:
        for path in dict.fromkeys(paths):
            try:
                key = digest("sound", VERSION, *source_identity(Path("/"), Path(path)))
                known = store.get(key)
                waiting.append((path, key, json.loads(known) if known else pool.submit(describe_sound, Path(path))))
            except OSError as error:
                waiting.append((path, b"", {"content": "unreadable", "reason": f"{path}: {error.strerror}"}))
        for path, key, sound in tqdm(waiting, desc="sound", unit=" videos", leave=False):
            if isinstance(sound, Future):
                sound = sound.result()
                store.put(key, "sound", json.dumps(sound))
            yield path, sound


def _paths(data: Jsonl, entries: list[Entry], folder: Path) -> Iterator[str]:
    for entry in entries:
        try:
            conversation = _read(data, entry, folder)[1]
        except DataError:  # reported with its line later
            continue
        yield from (item.path for item in conversation.media if item.kind == "video")


def _read(data: Jsonl, entry: Entry, folder: Path) -> tuple[dict[str, Any], Conversation]:
    record = data.record(entry)
    return record, parse_conversation(_with_video_marks(record), f"{data.path}:{entry.line}", folder)


def _with_video_marks(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record whose <image> marks are <video> if it has videos and no images: LLaVA-Video writes it so."""
    turns = record.get("conversations")
    has_images = record.get("image") or record.get("images")
    if has_images or not (record.get("video") or record.get("videos")) or not isinstance(turns, list):
        return record

    def mark(turn: Any) -> Any:
        value = turn.get("value") if isinstance(turn, dict) else None
        return turn | {"value": value.replace("<image>", "<video>")} if isinstance(value, str) else turn

    return record | {"conversations": [mark(turn) for turn in turns]}


def _record(conversation: Conversation, out: Path) -> dict[str, Any]:
    kinds = {"image": "image", "video": "video", "sound": "audio"}

    def item(content: str | Media) -> dict[str, Any]:
        if isinstance(content, str):
            return {"type": "text", "text": content}
        kind = kinds[content.kind]
        return {"type": kind, kind: os.path.relpath(content.path, out)}

    return {
        "messages": [
            {
                "role": message.role,
                "content": [item(content) for content in message.content if content]
                if any(isinstance(content, Media) for content in message.content)
                else "".join(content for content in message.content if isinstance(content, str)),
            }
            for message in conversation.messages
        ]
    }
