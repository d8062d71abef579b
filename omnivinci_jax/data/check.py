"""`omnivinci check`: lists every problem of a JSONL file and its media, with its line."""

from pathlib import Path

from tqdm import tqdm

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.processor import MediaReader, is_tiled
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.errors import UserError
from omnivinci_jax.sequence.chat import Media


def check_file(path: Path) -> tuple[int, list[str]]:
    """Returns (number of conversations, problems); reads every media file once, as training does."""
    data, problems, known = Jsonl(path), [], {}
    reader = MediaReader(OmniVinciConfig())
    entries = data.entries()
    for entry in tqdm(entries, desc=f"check {path.name}", unit=" samples", leave=False, mininterval=0.5):
        try:
            conversation = data.conversation(entry)
        except UserError as error:
            problems.append(str(error))
            continue
        if all(message.role != "assistant" for message in conversation.messages):
            problems.append(f"{conversation.where}: no assistant message, so there is nothing to train on")
        for item in conversation.media:
            key = item, is_tiled(conversation)
            if key not in known:
                known[key] = _problem(reader, *key)
            if known[key]:
                problems.append(f"{conversation.where}: {known[key]}")
    return len(entries), problems


def _problem(reader: MediaReader, item: Media, tiled: bool) -> str:
    try:
        reader.load_item(item, tiled)
    except UserError as error:
        return str(error)
    return ""
