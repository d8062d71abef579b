"""Rows other than clips with sound: images, sounds, silent clips, sums, sound tracks, speech, clip logs.

The training rows include a few of the first four, so that batches mix modalities; a curriculum (curriculum.py) has many
of each, and speech if espeak-ng is installed.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omnivinci_jax.av_world.encode import write_media
from omnivinci_jax.av_world.questions import (
    IMAGE,
    NUMBERS,
    SOUND,
    SPEECH,
    SUBTRACT,
    Kind,
    Turn,
    all_questions,
    caption_turns,
    clip_log,
    name_question,
    training_conversations,
)
from omnivinci_jax.av_world.render import (
    FRAME_RATE,
    RGB,
    SAMPLE_RATE,
    SHAPES,
    draw_shape,
    render_frames,
    render_sound,
    render_waveform,
)
from omnivinci_jax.av_world.timeline import COLOURS, LONGEST, SOUNDS, Clip, Event, draw_clip, generator
from omnivinci_jax.paths import atomic_file

SOUND_FILES = (("wav", 16_000), ("flac", 44_100), ("ogg", 48_000), ("wav", 44_100), ("flac", 16_000), ("ogg", 16_000))


VOICES = ("en", *(f"en+m{number}" for number in range(1, 8)), *(f"en+f{number}" for number in range(1, 5)))


def write_extra(out: Path, seed: int, number: int) -> dict[str, Any]:
    """Writes the media file of extra row `number`, unless it exists, and returns the row."""
    return ROW_MAKERS[number % len(ROW_MAKERS)](out, seed, number)


def conversation_row(name: str, media: tuple[str, str] | None, turns: list[Turn]) -> dict[str, Any]:
    """Returns a conversation in the Hugging Face chat form; media = (type, path) goes into the first user turn."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": answer})
    if media:
        kind, path = media
        messages[0]["content"].insert(0, {"type": kind, kind: path})
    return {"id": name, "messages": messages}


def image_row(out: Path, seed: int, number: int) -> dict[str, Any]:
    """Draws a shape; asks for its colour."""
    rng = generator(seed, "train", number, "image")
    width, height = rng.integers(41, 180, size=2)
    path = out / "images" / f"{number:06d}.png"
    colour = str(rng.choice(COLOURS))
    picture = np.broadcast_to(rng.integers(8, 36, size=3), (1, height, width, 3)).astype(np.float32)
    half_side = rng.uniform(0.21, 0.275) * min(width, height)
    centre = rng.uniform(half_side, np.array([[width, height]]) - half_side)
    draw_shape(picture, rng.choice(list(SHAPES)), np.array(RGB[colour]), half_side, centre)
    if not path.exists():
        with atomic_file(path) as part:
            Image.fromarray(picture[0].round().astype(np.uint8)).save(part, format="png")
    question = name_question(rng, "seen", IMAGE, colour, [colour], COLOURS)
    return conversation_row(f"image-{number:06d}", ("image", f"images/{path.name}"), [(question.text, colour)])


def sound_row(out: Path, seed: int, number: int) -> dict[str, Any]:
    """Renders a sound; asks for its name."""
    rng = generator(seed, "train", number, "sound")
    ending, rate = SOUND_FILES[number // len(ROW_MAKERS) % len(SOUND_FILES)]
    path = out / "sounds" / f"{number:06d}.{ending}"
    name = str(rng.choice(SOUNDS))
    sound = np.pad(render_sound(rng, name, rng.uniform(0.5, 1.0), rate), rng.integers(rate // 10, rate, size=2))
    gains = rng.uniform(0.3, 0.7, size=(rng.integers(1, 3), 1))
    sound = gains * sound + 0.001 * rng.standard_normal(len(sound))
    if not path.exists():
        write_media(path, None, 0, sound, rate)
    question = name_question(rng, "heard", SOUND, name, [name], SOUNDS)
    return conversation_row(f"sound-{number:06d}", ("audio", f"sounds/{path.name}"), [(question.text, name)])


def silent_row(out: Path, seed: int, number: int) -> dict[str, Any]:
    """Renders a clip without sound; asks what was seen and when, and for a caption."""
    clip = draw_clip(seed, "silent", number)
    path = out / "clips" / clip.name
    if not path.exists():
        write_media(path, render_frames(clip), FRAME_RATE, None, 0)
    turns = _stream_turns(clip, "seen", clip.sights)
    return conversation_row(f"silent-{number:06d}", ("video", f"clips/{path.name}"), turns)


def soundtrack_row(out: Path, seed: int, number: int) -> dict[str, Any]:
    """Renders the sound of a clip; asks what was heard and when, and for a caption."""
    clip = draw_clip(seed, "soundtrack", number)
    path = out / "sounds" / Path(clip.name).with_suffix(".flac")
    if not path.exists():
        write_media(path, None, 0, render_waveform(clip)[None], SAMPLE_RATE)
    turns = _stream_turns(clip, "heard", clip.sounds)
    return conversation_row(f"soundtrack-{number:06d}", ("audio", f"sounds/{path.name}"), turns)


def _stream_turns(clip: Clip, kind: Kind, stream: tuple[Event, ...]) -> list[Turn]:
    """Returns questions about one stream of a clip, then its caption."""
    questions, names = all_questions(clip, clip.rng("questions")), {event.name for event in stream}
    asked = [*questions[kind][:2], *(question for question in questions["when"] if question.asked in names)]
    return [*((question.text, question.answer) for question in asked), caption_turns(clip)[kind]]


def speech_row(out: Path, seed: int, number: int) -> dict[str, Any]:
    """Speaks a number with espeak-ng in a random voice; asks for the number."""
    rng = generator(seed, "train", number, "speech")
    path = out / "speech" / f"{number:06d}.wav"
    name = str(rng.choice(NUMBERS))
    voice, pitch, speed = rng.choice(VOICES), rng.integers(30, 71), rng.integers(120, 181)
    if not path.exists():
        with atomic_file(path) as part:
            options = ("-v", voice, "-p", str(pitch), "-s", str(speed), "-w", str(part))
            subprocess.run(["espeak-ng", *options, name], check=True, capture_output=True)
    question = name_question(rng, "heard", SPEECH, name, [name], NUMBERS)
    return conversation_row(f"speech-{number:06d}", ("audio", f"speech/{path.name}"), [(question.text, name)])


def can_speak() -> bool:
    """Returns whether espeak-ng is installed."""
    return shutil.which("espeak-ng") is not None


def text_row(out: Path, seed: int, number: int) -> dict[str, Any]:
    """Asks four sums, without media."""
    rng = generator(seed, "train", number, "text")
    turns = []
    for _ in range(4):
        start, end = sorted(map(int, rng.integers(int(LONGEST) + 1, size=2)))
        turns.append((SUBTRACT.format(start=NUMBERS[start], end=NUMBERS[end]), NUMBERS[end - start]))
    return conversation_row(f"text-{number:06d}", None, turns)


def log_row(out: Path, seed: int, number: int) -> dict[str, Any]:
    """Writes a clip as a text log, without media; asks the questions that clips get."""
    clip = draw_clip(seed, "log", number)
    *_, turns = training_conversations(clip, repeats=1 + number % 2)
    return _with_log(f"log-{number:06d}", clip, turns)


def log_caption_row(out: Path, seed: int, number: int) -> dict[str, Any]:
    """Writes a training clip as a text log, with captions or open questions."""
    clip = draw_clip(seed, "train", number)
    conversations = training_conversations(clip, repeats=0)
    return _with_log(f"log_caption-{number:06d}", clip, conversations[number % len(conversations)])


def _with_log(name: str, clip: Clip, turns: list[Turn]) -> dict[str, Any]:
    row = conversation_row(name, None, turns)
    row["messages"][0]["content"].insert(0, {"type": "text", "text": f"{clip_log(clip)}\n"})
    return row


ROW_MAKERS: tuple[Callable[[Path, int, int], dict[str, Any]], ...] = (image_row, sound_row, silent_row, text_row)
