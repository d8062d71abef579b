"""What there is to transcribe at a path: a file, a folder of files, or a corpus with reference texts."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omnivinci_jax.errors import DataError
from omnivinci_jax.sequence.chat import Media, valid_text
from omnivinci_jax.sequence.references import media_file, shown

_SUFFIXES = {
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".mp4", ".m4v", ".mov", ".mkv", ".webm",
    ".avi", ".flv", ".wmv", ".ts", ".mpg", ".mpeg", ".3gp",
}  # fmt: skip
_SOUND_KEYS = ("file_name", "audio", "audio_filepath", "sound", "path")
_TEXT_KEYS = ("text", "transcription", "transcript", "sentence")


class Utterance(NamedTuple):
    """A sound to transcribe; `name` is unique; `reference` is None without one; `where` starts errors about it."""

    item: Media
    name: str
    reference: str | None
    where: str


def read_utterances(path: Path) -> list[Utterance]:
    """Reads what there is at a path.

    - LibriSpeech's layout: folders with *.trans.txt, beside the FLAC files that its lines name.
    - A Hugging Face audio folder: metadata.jsonl or metadata.csv with `file_name` and a text.
    - A JSONL file with a sound (`audio`, `audio_filepath`, ...) and a text in each line.
    - Any other folder: all its sounds and videos; any other file: itself. These have no references.

    Raises:
        DataError: there is nothing, or a line does not name its sound; the message starts with file:line.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        if path.suffix == ".jsonl":
            return _from_rows(path, _json_rows(path))
        return [Utterance(Media("sound", str(path)), path.name, None, str(path))]
    if (table := path / "metadata.jsonl").exists():
        return _from_rows(table, _json_rows(table))
    if (table := path / "metadata.csv").exists():
        return _from_rows(table, _csv_rows(table))
    if lists := sorted(path.rglob("*.trans.txt")):
        return [utterance for file in lists for utterance in _librispeech(file)]
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in _SUFFIXES]
    if not files:
        raise DataError(f"{path}: has no sound or video file")
    return [Utterance(Media("sound", str(file)), file.relative_to(path).as_posix(), None, str(file)) for file in files]


def _librispeech(file: Path) -> Iterator[Utterance]:
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            name, _, text = line.strip().partition(" ")
            yield Utterance(Media("sound", str(file.parent / f"{name}.flac")), name, text, f"{file}:{number}")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except ValueError as error:
        raise DataError(f"{file}: not UTF-8: {error}") from None


def _json_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(table), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{table}:{number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{table}:{number}: must be a JSON object with a sound and a text: {shown(row)}")
            yield number, row


def _csv_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.DictReader(_lines(table))
    for row in rows:
        yield rows.line_num, row


def _from_rows(table: Path, rows: Iterator[tuple[int, dict[str, Any]]]) -> list[Utterance]:
    utterances = []
    for number, row in rows:
        where = f"{table}:{number}"
        sound = next((row[key] for key in _SOUND_KEYS if isinstance(row.get(key), str) and row[key]), None)
        text = next((row[key] for key in _TEXT_KEYS if isinstance(row.get(key), str)), None)
        if sound is None:
            raise DataError(f"{where}: names no sound: give its path as {', '.join(map(repr, _SOUND_KEYS))}")
        item = media_file("sound", sound, where, table.parent)
        utterances.append(Utterance(item, valid_text(sound), text, where))
    if not utterances:
        raise DataError(f"{table}: has no lines")
    return utterances
