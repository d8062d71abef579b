"""Cuts long sound into windows at quiet moments."""

import io
from typing import NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float32

from omnivinci_jax.data.shards import on_disk
from omnivinci_jax.media import decode
from omnivinci_jax.sequence.chat import Inline, Media

_QUIET_SECONDS = 0.1


class Window(NamedTuple):
    """A stretch of a sound from `start` to `end` in seconds, as a media item of its own."""

    start: float
    end: float
    item: Media


def cut_sound(item: Media, rate: int, seconds: float) -> list[Window]:
    """Returns the windows of a sound, each at most so many seconds; a short sound is its own window.

    Raises:
        MediaError: it cannot be read.
    """
    with on_disk(item) as file:
        length = decode.probe_audio(file.path, file.track)
        if length <= seconds:
            return [Window(0.0, length, item)]
        waveform = decode.read_waveform(file.path, rate, track=file.track)
    windows = []
    for start, end in spans(waveform, rate, seconds):
        content = io.BytesIO()
        soundfile.write(content, waveform[start:end], rate, "FLOAT", format="WAV")
        part = Media("sound", f"{item.path}#{start}-{end}", Inline(".wav", content.getvalue()))
        windows.append(Window(start / rate, end / rate, part))
    return windows


def spans(waveform: Float32[np.ndarray, " samples"], rate: int, seconds: float) -> list[tuple[int, int]]:
    """Returns the first sample of each window and the one after its last; cuts the quietest 0.1 s of its last third."""
    found, start, longest, quiet = [], 0, int(seconds * rate), int(_QUIET_SECONDS * rate)
    while len(waveform) - start > longest:
        first = start + longest * 2 // 3
        steps = waveform[first : start + longest][: (start + longest - first) // quiet * quiet].reshape(-1, quiet)
        energy = np.square(steps).mean(axis=1)
        last_quietest = len(energy) - 1 - int(np.argmin(energy[::-1]))
        end = first + last_quietest * quiet + quiet // 2
        found.append((start, end))
        start = end
    return [*found, (start, len(waveform))]
