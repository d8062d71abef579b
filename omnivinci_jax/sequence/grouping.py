"""Temporal Embedding Grouping (Section 2.1, Equations 2 and 3)."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

# Codec padding makes sound tracks outlast their video; a rest of at most this fraction of a group opens no other group.
_SLACK = 0.05


def temporal_groups(
    frame_times: Float64[np.ndarray, " frames"],
    *,
    seconds: float,
    num_vision_tokens: int,
    num_audio_tokens: int,
    mel_frames: int,
    window_seconds: float,
    group_seconds: float | None,
) -> list[tuple[range, range]]:
    """Cuts a clip's tokens into groups of T_G seconds; returns each group's (vision, audio) token ranges.

    Args:
        frame_times: presentation times of the sampled frames, in seconds.
        seconds: end of the clip, the later of video and sound.
        num_vision_tokens: vision tokens of the clip, over all its pools.
        num_audio_tokens: audio tokens of the clip, padding included.
        mel_frames: mel frames of the sound with its padding, before zero frames fill the last window.
        window_seconds: duration of those mel frames, in seconds.
        group_seconds: T_G; None makes one group (token concatenation, the baseline of Table 1).
    """
    if group_seconds is None:
        group_seconds = math.inf
    count, ends = group_count(seconds, group_seconds), []
    for index in range(count):
        group_end = math.inf if index == count - 1 else (index + 1) * group_seconds
        frames_before = int(np.searchsorted(frame_times, group_end, side="left"))
        mel_end = min(round(min(group_end, seconds) * mel_frames / window_seconds), mel_frames)
        ends.append((frames_before, mel_end))
    return cut_groups(
        ends, len(frame_times), mel_frames, num_vision_tokens=num_vision_tokens, num_audio_tokens=num_audio_tokens
    )


def group_count(seconds: float, group_seconds: float) -> int:
    """Returns the number of temporal groups of a clip of so many seconds."""
    return max(1, math.ceil(seconds / group_seconds - _SLACK))


def cut_groups(
    ends: Sequence[tuple[int, int]], frames: int, mel_frames: int, *, num_vision_tokens: int, num_audio_tokens: int
) -> list[tuple[range, range]]:
    """Cuts a clip's tokens where its groups end; returns each group's (vision, audio) token ranges.

    The cuts match the released code: a stream of n tokens over `total` frames is cut at ceil(end * n / total), where
    `end` is the last frame of the group + 1 (vision) or its last mel frame (audio). A group starts where the previous
    one ended, so tokens past the clip's end (the padding of the last window) are in no group.

    `total` counts the frames before temporal pooling, so a cut can fall inside a pooled frame, whose tokens then belong
    to two groups: with pools of 2 frames and 4 tokens, a group of 3 frames ends at token 6, inside the second pooled
    frame. The released code does this (it divides the tokens by `expected_frame_count`, where it interleaves vision and
    audio), and the recorded case `e_video_audio` has such a cut, so we keep it.

    Args:
        ends: how many sampled frames and mel frames precede each group's end.
        frames: sampled frames of the clip.
        mel_frames, num_vision_tokens, num_audio_tokens: as in `temporal_groups`.
    """
    groups, vision_start, audio_start = [], 0, 0
    for frame_end, mel_end in ends:
        vision_end = math.ceil(frame_end * num_vision_tokens / max(frames, 1))
        audio_end = math.ceil(mel_end * num_audio_tokens / mel_frames)
        groups.append((range(vision_start, vision_end), range(audio_start, audio_end)))
        vision_start, audio_start = vision_end, audio_end
    return groups
