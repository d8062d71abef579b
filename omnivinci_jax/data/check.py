"""`omnivinci check`: lists every problem of a JSONL file and its media, with its line."""

from pathlib import Path

from tqdm import tqdm

from omnivinci_jax.data.processor import MediaReader, Processor, is_tiled
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.errors import describe_at
from omnivinci_jax.sequence.chat import Conversation, Media
from omnivinci_jax.sequence.row import MediaSize


def check_file(path: Path, reader: MediaReader) -> tuple[int, list[str]]:
    """Returns (number of conversations, problems); reads every media file as training does, once.

    With a Processor, also lays out every conversation, and finds those that are longer than the model can read.
    """
    data, problems = Jsonl(path), []
    entries, media = data.entries(), _Media(reader)
    for entry in tqdm(entries, desc=f"check {path.name}", unit=" samples", leave=False, mininterval=0.5):
        where = f"{path}:{entry.line}"
        try:
            conversation = reader.select(data.conversation(entry))
            if all(message.role != "assistant" for message in conversation.messages):
                problems.append(f"{where}: no assistant message, so there is nothing to train on")
            tiled = is_tiled(conversation)
            read = [media.read(item, tiled) for item in conversation.media]
            failed = [error for error in read if isinstance(error, Exception)]
            problems += [describe_at(where, error) for error in failed]
            sizes = [size for size in read if not isinstance(size, Exception)]
            if isinstance(reader, Processor) and not failed:
                problems += _too_long(conversation, sizes, reader)
        except Exception as error:  # whatever one sample raises is a problem of that sample
            problems.append(describe_at(where, error))
    return len(entries), problems


class _Media:
    """Reads each media item once, and keeps its size or its error."""

    def __init__(self, reader: MediaReader):
        self._reader = reader
        self._known: dict[tuple[Media, bool], MediaSize | Exception] = {}

    def read(self, item: Media, tiled: bool) -> MediaSize | Exception:
        key = item, tiled
        if key not in self._known:
            try:
                self._known[key], _, _ = self._reader.load_item(item, tiled)
            except Exception as error:
                self._known[key] = error.with_traceback(None)  # which would keep the decoder's frames
        return self._known[key]


def _too_long(conversation: Conversation, sizes: list[MediaSize], processor: Processor) -> list[str]:
    length, longest = len(processor.lay_out(conversation, sizes)), processor.config.text.max_position_embeddings
    return [f"{conversation.where}: {length} slots, but the model reads {longest}"] if length > longest else []
