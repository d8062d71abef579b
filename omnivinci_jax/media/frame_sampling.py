"""Which frames of a video the model sees, and where its temporal groups end.

`uniform` is ours: frames at the centres of equal bins, at their true times. `released` and `port` are the rules of the
released media code and of the Transformers port, for weights that were trained on such frames: both take a fixed number
of frames by index, ignore `fps`, and take the times from the index and the mean frame rate.
"""

import math
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

# Denominator of the NTSC rates, such as 30000/1001.
_LARGEST_DENOMINATOR = 1001


class SampledFrames(NamedTuple):
    """The sampled frames of a video.

    indices: sorted; `released` repeats frames of short clips.
    times: seconds from the start of the clip.
    seconds: length of the clip.
    rate: frames per second of the clock behind `times`; None for true presentation times.
    """

    indices: Int[np.ndarray, " n"]
    times: Float64[np.ndarray, " n"]
    seconds: float
    rate: float | None


def sample_frames(
    rule: Literal["uniform", "released", "port"],
    frame_times: Float[np.ndarray, " frames"],
    duration: float,
    fps: float,
    max_frames: int,
) -> SampledFrames:
    """Samples a video by one of the rules.

    Args:
        rule: `frame_sampling` of the configuration.
        frame_times: of all frames, and `duration`: the end of the last one, in seconds from the start of the clip.
        fps: for `uniform`.
        max_frames: the number of frames to take, for `uniform` at most.
    """
    if rule == "uniform":
        indices = uniform_indices(frame_times, duration, fps, max_frames)
        return SampledFrames(indices, frame_times[indices].astype(np.float64), duration, None)
    frames = len(frame_times)
    indices = released_indices(frames, max_frames) if rule == "released" else port_indices(frames, max_frames)
    rate = float(Fraction(frames / (duration - frame_times[0])).limit_denominator(_LARGEST_DENOMINATOR))
    return SampledFrames(indices, indices / rate, frames / rate, rate)


def uniform_indices(
    frame_times: Float[np.ndarray, " frames"], duration: float, fps: float, max_frames: int
) -> Int[np.ndarray, " n"]:
    """Returns indices of the frames shown at the centres of n = clip(⌊duration·fps⌋, 1, max_frames) equal bins.

    A centre before the first frame takes the first frame. A frame that fills several bins is returned once, so there
    may be fewer than n. The true times are `frame_times[indices]`.
    """
    # Rounded timestamps can turn the 20 frames of 10 s at 2 fps into 19.9999.
    count = int(np.clip(np.floor(duration * fps + 1e-3), 1, max_frames))
    centres = (np.arange(count) + 0.5) * duration / count
    on_screen = np.searchsorted(frame_times, centres + 1e-6, side="right") - 1
    return np.unique(np.maximum(on_screen, 0))


def released_indices(frames: int, count: int) -> Int[np.ndarray, " count"]:
    """Returns `count` indices from the first frame to the last: frames of clips shorter than `count` repeat."""
    return np.round(np.linspace(0, frames - 1, count)).astype(int)


def port_indices(frames: int, count: int) -> Int[np.ndarray, " n"]:
    """Returns multiples of ⌊frames / count⌋ from 0, about `count` of them; only frame 0 of clips shorter than `count`.

    So a clip of 1 to 2 times `count` frames is read at 0, 1/fps, 2/fps, …, and not to its end. The port computes
    `np.arange(0, frames, frames / count, dtype=int)`, which rounds the step down, and decodes every index once.
    (transformers 5.24, without the port, takes ⌊k·frames / count⌋ and refuses shorter clips.)
    """
    stride = frames // count
    return stride * np.arange(math.ceil(frames / (frames / count))) if stride else np.zeros(1, int)


def group_ends(
    indices: Int[np.ndarray, " n"],
    *,
    frames: int,
    rate: float,
    group_seconds: float,
    sound_seconds: float,
    mel_rate: int,
) -> tuple[tuple[int, int], ...]:
    """Returns how many sampled frames and mel frames precede the end of each temporal group, as `released` and `port`.

    There are ⌈frames / rate / T_G⌉ groups: sound after the last frame is in none.

    Args:
        indices: of the sampled frames.
        frames: of the video.
        rate: frames per second.
        group_seconds: T_G.
        sound_seconds: length of the sound, without padding.
        mel_rate: whole mel frames per second, sampling_rate // hop_length.
    """
    seconds, ends, mel_end = frames / rate, [], 0
    for index in range(math.ceil(seconds / group_seconds)):
        frame_end = int(np.searchsorted(indices, (index + 1) * group_seconds * rate, side="left"))
        heard = min((index + 1) * group_seconds, seconds, sound_seconds)
        if heard > index * group_seconds:
            mel_end = round(heard * mel_rate)
        ends.append((frame_end, mel_end))
    return tuple(ends)
