"""Voices, and speech of a streamed text sentence by sentence."""

import io
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import soundfile
from jaxtyping import Float32

from omnivinci_jax.errors import UserError
from omnivinci_jax.settings import VoiceConfig

# The end of a sentence: a mark and a space, a mark of a script without spaces, or the end of a line.
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


class Sound(NamedTuple):
    """A mono waveform and its rate in Hz."""

    waveform: Float32[np.ndarray, " samples"]
    rate: int


@runtime_checkable
class Voice(Protocol):
    """A text-to-speech back end; `config` is part of the cache key of its speech."""

    config: VoiceConfig

    def say(self, text: str) -> Sound:
        """Speaks a text, usually one sentence; raises UserError."""
        ...


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """Yields the sentences of a text given in pieces, each as soon as the next one begins."""
    rest = ""
    for piece in pieces:
        *whole, rest = _END.split(rest + piece)
        yield from filter(str.strip, whole)
    if rest.strip():
        yield rest


def speak(voice: Voice, pieces: Iterable[str]) -> Iterator[Sound]:
    """Speaks a text given in pieces, sentence by sentence; all sounds have one rate."""
    for sentence in sentences(pieces):
        yield voice.say(sentence.strip())


def read_sound(content: bytes, source: str) -> Sound:
    """Decodes the bytes of a WAV file; raises a UserError that names `source`."""
    try:
        waveform, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        raise UserError(f"{source}: its answer is not a sound file: {content[:80]!r}") from None
    return Sound(waveform.mean(axis=1), rate)
