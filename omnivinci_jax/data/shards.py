"""Conversations and their media in ArrayRecord shards, as `omnivinci shard` writes them (data/write_shards.py).

A folder holds shards.json and two files per shard: conversations (JSON, with the record indices of their media) and
media (a line of JSON, then the bytes of a file). A shard is self-contained and stores each media file once.
"""

import json
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from omnivinci_jax import strict_json
from omnivinci_jax.data.records import Entry
from omnivinci_jax.errors import DataError, MediaError
from omnivinci_jax.paths import AnyPath, local_copy
from omnivinci_jax.sequence.chat import Conversation, Inline, Media, Message, ShardRef
from omnivinci_jax.sequence.forms import parse_conversation

MANIFEST = "shards.json"


def shard_bounds(conversations: int, shards: int) -> list[int]:
    """Returns the index of each shard's first conversation, then the total."""
    return [conversations * shard // shards for shard in range(shards + 1)]


def shard_name(kind: str, number: int, count: int) -> str:
    """Returns the file name of a shard of conversations or media."""
    return f"{kind}-{number:05}-of-{count:05}.array_record"


def media_key(item: Media) -> str:
    """Returns the key of a media file in its shard: sounds are stored by track, other files once."""
    if item.kind != "sound":
        return f"file:{item.path}"
    return f"sound:{item.path}" if item.track is None else f"sound:{item.path}#{item.track}"


@dataclass(frozen=True)
class Shards:
    """A folder of shards as `Records`; an entry's location is the index of its conversation."""

    path: AnyPath

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Contents of shards.json; raises DataError if shards are missing."""
        if not (self.path / MANIFEST).exists():
            raise DataError(f"{self.path}: there is no {MANIFEST}; write data for a bucket with `omnivinci shard`")
        manifest = strict_json.read(self.path / MANIFEST)
        if len(manifest["bytes"]) < manifest["shards"]:
            raise DataError(
                f"{self.path}: {manifest['shards'] - len(manifest['bytes'])} of {manifest['shards']} shards are "
                "missing; run the same `omnivinci shard` again"
            )
        return manifest

    def identity(self) -> tuple:
        """See `Records`."""
        return str(self.path), json.dumps(self.manifest)

    def entries(self) -> list[Entry]:
        """See `Records`."""
        records = [record for shard in range(self.manifest["shards"]) for record in self._shard(shard).read_all()]
        return [Entry(location, json.loads(data)["line"], data) for location, data in enumerate(records)]

    def read(self, location: int) -> bytes:
        """See `Records`."""
        shard = self._shard_of(location)
        return self._shard(shard).read([location - self._bounds[shard]])[0]

    def record(self, entry: Entry) -> dict:
        """See `Records`."""
        stored = json.loads(entry.data)
        if "problem" in stored:
            raise DataError(f"{self.path}:{entry.line}: {stored['problem']}")
        return stored["record"]

    def conversation(self, entry: Entry) -> Conversation:
        """See `Records`; its media refer to records of the shards."""
        conversation = parse_conversation(self.record(entry), f"{self.path}:{entry.line}", epath.Path())
        media = json.loads(entry.data)["media"]
        shard = str(self.path / shard_name("media", self._shard_of(entry.location), self.manifest["shards"]))

        def in_shard(item: str | Media) -> str | Media:
            if isinstance(item, str) or item.stored:
                return item
            return replace(item, path=str(self.path / item.path), stored=ShardRef(shard, media[media_key(item)]))

        messages = (Message(message.role, tuple(map(in_shard, message.content))) for message in conversation.messages)
        return replace(conversation, messages=tuple(messages))

    @cached_property
    def _bounds(self) -> list[int]:
        return shard_bounds(self.manifest["conversations"], self.manifest["shards"])

    def _shard_of(self, location: int) -> int:
        return bisect_right(self._bounds, location) - 1

    def _shard(self, number: int) -> ArrayRecordReader:
        return _reader(str(self.path / shard_name("conversations", number, self.manifest["shards"])))


@contextmanager
def on_disk(item: Media) -> Iterator[Media]:
    """Yields the item as a local file: itself, or a temporary copy of what its shard or its data: URI holds.

    MediaErrors name the item's path.
    """
    if item.stored is None:
        yield item
        return
    file, decoded = _temporary_copy(item.stored)
    try:
        yield replace(item, path=file.name, stored=None, track=None if decoded else item.track)
    except MediaError as error:
        raise MediaError(str(error).replace(file.name, item.path)) from None


# Keeps the last few files, since consecutive conversations are often about the same file.
@lru_cache(maxsize=4)
def _temporary_copy(stored: ShardRef | Inline) -> tuple[tempfile._TemporaryFileWrapper, bool]:
    """Returns a copy of a stored file, and whether it is a decoded track, the only one of the copy."""
    if isinstance(stored, Inline):
        header, content = dict[str, Any](suffix=stored.suffix), stored.content
    else:
        header, _, content = _reader(stored.shard).read([stored.record])[0].partition(b"\n")
        header = json.loads(header)
        if "problem" in header:
            raise MediaError(header["problem"])
    file = tempfile.NamedTemporaryFile(suffix=header["suffix"])  # noqa: SIM115 - deleted with the object
    file.write(content)
    file.flush()
    return file, header.get("decoded", False)


# Few enough to stay well below the limit on open files.
@lru_cache(maxsize=128)
def _reader(path: str) -> ArrayRecordReader:
    reader = ArrayRecordReader(str(local_copy(path)), "readahead_buffer_size:0,max_parallelism:0")
    if not reader.ok():
        raise DataError(f"{path}: not an ArrayRecord file; delete the folder and write the shards again")
    return reader
