"""Voices: what says a sentence, and how a text that is still being written is said sentence by sentence."""

import io
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import soundfile
from jaxtyping import Float32

from omnivinci_jax.errors import UserError
from omnivinci_jax.settings import VoiceConfig

# The end of a sentence: a mark and a space, a mark of a script that writes none, or the end of a line.
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


class Sound(NamedTuple):
    """A mono waveform and its rate in Hz."""

    waveform: Float32[np.ndarray, " samples"]
    rate: int


@runtime_checkable
class Voice(Protocol):
    """A text-to-speech back end; `config` is what it says is remembered by."""

    config: VoiceConfig

    def say(self, text: str) -> Sound:
        """A text, mostly a sentence, as sound; raises UserError."""
        ...


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """The sentences of a text that comes in pieces, each as soon as the next one begins."""
    rest = ""
    for piece in pieces:
        *whole, rest = _END.split(rest + piece)
        yield from filter(str.strip, whole)
    if rest.strip():
        yield rest


def speak(voice: Voice, pieces: Iterable[str]) -> Iterator[Sound]:
    """Says a text that comes in pieces, sentence by sentence; all sounds have one rate."""
    for sentence in sentences(pieces):
        yield voice.say(sentence.strip())


def read_sound(content: bytes, of: str) -> Sound:
    """The sound in the bytes of a WAV file that `of` has made; raises UserError."""
    try:
        waveform, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        raise UserError(f"{of}: its answer is no sound: {content[:80]!r}") from None
    return Sound(waveform.mean(axis=1), rate)
