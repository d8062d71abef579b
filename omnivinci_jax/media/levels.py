"""Levels of a file's sound, and what they tell about it."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from jaxtyping import Float32

from omnivinci_jax.media.container import PathLike
from omnivinci_jax.media.decode import iterate_sound

Content = Literal["silent", "steady", "varied"]

FRAMES_PER_SECOND = 20
SILENCE = -60.0  # dB below full scale
_RATE = 16_000
_FLOOR = 1e-5
# Speech pauses between syllables and words; music and noise rarely fall below half of their mean level.
_PAUSES = 0.15


def sound_levels(path: PathLike) -> Float32[np.ndarray, " frames"]:
    """Returns the root mean square of each twentieth of a second, in dB below full scale, at least -100.

    Raises:
        MediaError: there is no sound, or it cannot be decoded.
    """
    return levels_of(iterate_sound(path, _RATE))


def levels_of(blocks: Iterable[Float32[np.ndarray, " t"]]) -> Float32[np.ndarray, " frames"]:
    """Returns the levels of a waveform in blocks of 16 kHz; drops samples that do not fill the last frame."""
    size, rest, levels = _RATE // FRAMES_PER_SECOND, np.zeros(0, np.float32), []
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = rest.size // size * size
        frames = rest[:whole].reshape(-1, size)
        levels.append(np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=1)))
        rest = rest[whole:]
    joined = np.concatenate(levels) if levels else np.zeros(0)
    return (20 * np.log10(np.maximum(joined, _FLOOR))).astype(np.float32)


def seconds_of(levels: Float32[np.ndarray, " frames"]) -> list[int]:
    """Returns the level of each second in whole dB: the power's mean."""
    starts = range(0, len(levels), FRAMES_PER_SECOND)
    power = 10 ** (levels.astype(np.float64) / 10)
    return [round(10 * np.log10(power[start : start + FRAMES_PER_SECOND].mean())) for start in starts]


def content_of(levels: Float32[np.ndarray, " frames"], silence: float = SILENCE) -> Content:
    """Tells what a sound may hold, by its levels alone: a guess that costs no model.

    silent: no second is louder than `silence`. varied: it pauses as speech does: in the seconds that are loud, more
    than 15 % of the frames have less than half of their second's mean amplitude (the "low short-time energy ratio").
    steady: music, noise or a hum.
    """
    count = len(levels) // FRAMES_PER_SECOND * FRAMES_PER_SECOND
    seconds = 10 ** (levels[:count].reshape(-1, FRAMES_PER_SECOND).astype(np.float64) / 20)
    loud = seconds[20 * np.log10(seconds.mean(axis=1)) > silence] if count else seconds
    if not len(loud):
        heard = levels.size and not count and levels.max() > silence  # shorter than a second
        return "steady" if heard else "silent"
    low = loud < 0.5 * loud.mean(axis=1, keepdims=True)
    return "varied" if low.mean() > _PAUSES else "steady"
