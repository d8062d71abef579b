"""Stored conversations: lines of a JSONL file, or records of a folder of shards, behind one interface."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from omnivinci_jax.errors import DataError
from omnivinci_jax.paths import AnyPath
from omnivinci_jax.sequence.chat import Conversation, parse_conversation


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
class Jsonl:
    """A JSONL file, one conversation per line; an entry's location is its byte offset."""

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
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    entries.append(Entry(offset, number, line))
                offset += len(line)
        if not entries:
            raise DataError(f"{self.path}: the file has no conversations")
        return entries

    def read(self, location: int) -> bytes:
        """See `Records`."""
        with open(self.path, "rb") as file:
            file.seek(location)
            return file.readline()

    def record(self, entry: Entry) -> dict:
        """See `Records`."""
        try:
            return json.loads(entry.data)
        except ValueError as error:
            raise DataError(f"{self.path}:{entry.line}: not JSON: {error}") from None

    def conversation(self, entry: Entry, folder: Path | None = None) -> Conversation:
        """See `Records`; media paths are relative to `folder`, by default the file's folder."""
        folder = self.path.parent if folder is None else folder
        return parse_conversation(self.record(entry), f"{self.path}:{entry.line}", folder)
