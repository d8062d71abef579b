"""`omnivinci check`: lists every problem of a JSONL file and its media, with its line."""

from pathlib import Path

from tqdm import tqdm

from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.errors import UserError
from omnivinci_jax.media import decode, stills
from omnivinci_jax.sequence.chat import Media


def check_file(path: Path) -> tuple[int, list[str]]:
    """Returns (number of conversations, problems); decodes every media file fully, once."""
    data, problems, known = Jsonl(path), [], {}
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
            if item not in known:
                known[item] = _problem(item)
            if known[item]:
                problems.append(f"{conversation.where}: {known[item]}")
    return len(entries), problems


def _problem(item: Media) -> str:
    try:
        if item.kind == "image":
            stills.read_image(item.path)
        elif item.kind == "sound":
            decode.read_waveform(item.path)
        else:
            info = decode.probe_video(item.path)
            sampled = decode.sample_frames(info.frame_times, info.duration, 2.0, 128)
            for _ in decode.iterate_frames(item.path, sampled):
                pass
            if info.audio_seconds:
                decode.read_waveform(item.path)
    except UserError as error:
        return str(error)
    return ""
