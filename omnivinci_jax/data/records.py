"""Stored conversations: lines of a JSONL file, or records of a folder of shards, behind one interface."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from omnivinci_jax.errors import DataError
from omnivinci_jax.paths import AnyPath
from omnivinci_jax.sequence.chat import Conversation
from omnivinci_jax.sequence.forms import parse_conversation

_SPACE = re.compile(r"[ \t\r\n]*")
_CHUNK = 2**16


class Entry(NamedTuple):
    """One stored conversation: its location for `Records.read`, its line in the JSONL file (from 1), and its bytes."""

    location: int
    line: int
    data: bytes


@runtime_checkable
class Records(Protocol):
    """Random access to stored conversations."""

    @property
    def path(self) -> AnyPath:
        """Path of the file or folder."""
        ...

    def identity(self) -> tuple:
        """Returns a value that changes when the content does."""
        ...

    def entries(self) -> list[Entry]:
        """Reads all conversations; raises DataError if there are none."""
        ...

    def read(self, location: int) -> bytes:
        """Reads the bytes of one conversation."""
        ...

    def record(self, entry: Entry) -> dict:
        """Returns the JSON object as the user wrote it; raises DataError, starting with file:line."""
        ...

    def conversation(self, entry: Entry) -> Conversation:
        """Returns the conversation; raises DataError, starting with file:line."""
        ...


@dataclass(frozen=True)
class WrappedRecords:
    """Records that read others; a subclass changes their conversations."""

    records: Records

    @property
    def path(self) -> AnyPath:
        """See `Records`."""
        return self.records.path

    def identity(self) -> tuple:
        """See `Records`; a subclass adds what it depends on."""
        return self.records.identity()

    def entries(self) -> list[Entry]:
        """See `Records`."""
        return self.records.entries()

    def read(self, location: int) -> bytes:
        """See `Records`."""
        return self.records.read(location)

    def record(self, entry: Entry) -> dict:
        """See `Records`."""
        return self.records.record(entry)

    def conversation(self, entry: Entry) -> Conversation:
        """See `Records`."""
        return self.records.conversation(entry)


@dataclass(frozen=True)
class Jsonl:
    """A JSONL file, one conversation per line, or a JSON array of them; an entry's location is its byte offset."""

    path: Path

    def identity(self) -> tuple:
        """See `Records`."""
        if not self.path.is_file():
            raise DataError(
                f"{self.path}: no such file; give a JSONL file, one conversation per line, or a folder of shards"
            )
        stat = self.path.stat()
        return str(self.path.resolve()), stat.st_size, stat.st_mtime_ns

    def entries(self) -> list[Entry]:
        """See `Records`; skips blank lines."""
        self.identity()
        entries, offset = [], 0
        if self._is_array:
            entries = self._array_entries()
        else:
            with open(self.path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        entries.append(Entry(offset, number, line))
                    offset += len(line)
        if len(entries) > 1 and entries[0].data.strip() == b"{":
            raise DataError(f"{self.path}: a conversation takes several lines: write one conversation a line")
        if not entries:
            raise DataError(f"{self.path}: the file has no conversations")
        return entries

    def read(self, location: int) -> bytes:
        """See `Records`."""
        with open(self.path, "rb") as file:
            file.seek(location)
            if not self._is_array:
                return file.readline()
            data = b""
            while part := file.read(max(len(data), _CHUNK)):
                data += part
                text = data.decode(errors="ignore")  # the last character may be incomplete
                try:
                    return text[: json.JSONDecoder().raw_decode(text)[1]].encode()
                except (ValueError, RecursionError):  # it is longer
                    continue
            return data

    def record(self, entry: Entry) -> dict:
        """See `Records`."""
        try:
            record = json.loads(entry.data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}:{entry.line}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{self.path}:{entry.line}: a conversation must be a JSON object, not {type(record).__name__}"
            )
        return record

    def conversation(self, entry: Entry, folder: Path | None = None) -> Conversation:
        """See `Records`; media paths are relative to `folder`, by default the file's folder."""
        folder = self.path.parent if folder is None else folder
        return parse_conversation(self.record(entry), f"{self.path}:{entry.line}", folder)

    @cached_property
    def _is_array(self) -> bool:
        with open(self.path, "rb") as file:
            return file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["

    def _array_entries(self) -> list[Entry]:
        """Returns the elements of a JSON array; raises DataError where it is not JSON."""
        decoder, entries = json.JSONDecoder(), []
        content = self.path.read_bytes()
        try:
            text = content.decode()
            position, offset, line = text.index("[") + 1, 0, 1
            start = 0  # of the text that `offset` and `line` already cover
            while True:
                position = _skip_space(text, position)
                if text[position : position + 1] == "]":
                    return entries
                _, end = decoder.raw_decode(text, position)
                offset += len(text[start:position].encode())
                line += text.count("\n", start, position)
                entries.append(Entry(offset, line, text[position:end].encode()))
                start, position = position, _skip_space(text, end)
                if text[position : position + 1] == ",":
                    position += 1
                elif text[position : position + 1] != "]":
                    raise json.JSONDecodeError("expected ',' or ']'", text, position)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise DataError(f"{self.path}:{line}: not UTF-8: {error}") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{self.path}:{error.lineno}: not JSON: {error}") from None
        except (ValueError, RecursionError) as error:  # a number too long, or too many brackets
            raise DataError(f"{self.path}: not JSON: {error}") from None


def check_skipped(problems: Sequence[str], samples: int, max_skipped: float, path: AnyPath) -> None:
    """Raises DataError, with the first problems, if they are more than the share `max_skipped` of the samples."""
    if len(problems) > max_skipped * samples:
        shown = "".join(f"\n  {problem}" for problem in problems[:20])
        raise DataError(
            f"{path}: {len(problems)} of {samples} samples cannot be used, more than max_skipped = {max_skipped:g} "
            f"allows:{shown}"
        )


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found
    return found.end()
