"""Rotation angles of the axial time schemes of released configurations (period_fix "True" and "False").

An axial scheme rotates a token by its time multiplied by its position along two axes. The angles reach thousands of
turns, where float32 is off by thousandths, and released models were trained with these errors. So we compute the angles
on the host exactly as the released code does, in float32 step by step, and reduce them to one turn.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int

from omnivinci_jax.config import TimeEmbeddingConfig

_TWO, _PI = np.float32(2), np.float32(np.pi)
THETA = {"video": 50_000.0, "sound": 10_000.0}  # base of `lang` without max_time, as released


def axial_angles(
    frame: Int[np.ndarray, " n"],
    token: Int[np.ndarray, " n"],
    num_frames: int,
    num_tokens: int,
    times: Float64[np.ndarray, " n"],
    config: TimeEmbeddingConfig,
    modality: Literal["video", "sound"],
) -> Float32[np.ndarray, "n C"]:
    """Returns angles in [0, 2π) of the first C = 2·trope_dim channels of n tokens of one clip.

    The first half of the channels rotates by the frame's index, the second by the token's index in its frame, both
    times 2πt/T_max (`axial`; t without max_time) or -2πt (`axial_reversed`). Each angle appears twice, for the two
    channels of a plane.

    Args:
        frame, token: indices of each token, after pooling; a sound is one frame with all its tokens.
        num_frames, num_tokens: lengths of the two axes.
        times: in seconds.
        config: of the modality; `theta` and `pair_angles` are ignored.
        modality: `THETA` depends on it, and max_time does not scale video `pixel` positions.
    """
    frequencies = _frequencies(config, modality)
    axes = [
        _positions(num_frames, config, modality)[frame][:, None] * frequencies,
        _positions(num_tokens, config, modality)[token][:, None] * frequencies,
    ]
    seconds = times.astype(np.float32)
    if config.scheme == "axial_reversed":
        turning = -seconds * _TWO * _PI
    elif config.max_time is None:
        turning = seconds
    else:
        turning = seconds / np.float32(config.max_time) * _TWO * _PI
    angles = np.concatenate(axes, axis=-1) * turning[:, None]
    return np.repeat(angles.astype(np.float64) % (2 * np.pi), 2, axis=-1).astype(np.float32)


def _positions(length: int, config: TimeEmbeddingConfig, modality: str) -> Float32[np.ndarray, " length"]:
    pixel = config.time_embed_type == "pixel"
    position = _linspace(-1, 1, length) if pixel else np.arange(length, dtype=np.float32)
    if config.max_time is None or (pixel and modality == "video"):
        return position
    return position / np.float32(config.max_time) * np.float32(2 * np.pi)


def _frequencies(config: TimeEmbeddingConfig, modality: str) -> Float32[np.ndarray, " planes"]:
    planes = config.trope_dim // 2
    if config.time_embed_type == "pixel":
        return _linspace(1, 128, planes) * _PI
    theta = THETA[modality] if config.max_time is None else config.max_time / (2 * np.pi)
    exponents = np.arange(0, config.trope_dim, 2, dtype=np.float32) / np.float32(config.trope_dim)
    return 1 / (np.float64(np.float32(theta)) ** exponents).astype(np.float32)


def _linspace(start: float, stop: float, length: int) -> Float32[np.ndarray, " length"]:
    """Computes torch.linspace in float32, bit for bit: float32 step, from both ends inwards, one rounding each."""
    step = np.float64(np.float32((stop - start) / max(length - 1, 1)))
    index = np.arange(length)
    up, down = start + step * index, stop - step * (length - 1 - index)
    return np.where((index < length // 2) | (length == 1), up, down).astype(np.float32)
