"""Rotation angles of the axial time schemes of released configurations (period_fix "True" and "False").

An axial scheme rotates a token by its place, along two axes, times its time. The angles reach thousands of turns, more
than float32 holds, and depend on numbers that the host knows: made here in float64, they travel reduced to one turn.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int

from omnivinci_jax.config import TimeEmbeddingConfig

THETA = {"video": 50_000.0, "sound": 10_000.0}  # the released base of `lang` without a horizon


def axial_angles(
    frame: Int[np.ndarray, " n"],
    token: Int[np.ndarray, " n"],
    num_frames: int,
    num_tokens: int,
    times: Float64[np.ndarray, " n"],
    config: TimeEmbeddingConfig,
    modality: Literal["video", "sound"],
) -> Float32[np.ndarray, "n C"]:
    """Angles in [0, 2π) of the first C = 2·trope_dim channels of n tokens of one clip.

    The first half of the channels turns with the frame's index, the second with the token's index in its frame; each
    angle stands twice, for the two channels of a plane. Times 2πt/T_max (`axial`; t where there is no horizon) or -2πt
    (`axial_reversed`).

    Args:
        frame, token: indices of each token, after pooling; a sound has one frame that holds all its tokens.
        num_frames, num_tokens: lengths of the two axes.
        times: seconds.
        config: of the modality; its `theta` and `pair_angles` play no part.
        modality: video `pixel` positions are not scaled by a horizon, and `THETA` differs.
    """
    horizon = config.max_time
    half = np.concatenate(
        [_positions(frame, num_frames, config, modality), _positions(token, num_tokens, config, modality)], axis=-1
    )
    if config.scheme == "axial_reversed":
        turns = half * -times[:, None]
    else:
        turns = half * (times[:, None] / (horizon if horizon is not None else 2 * np.pi))
    return (np.repeat(turns % 1, 2, axis=-1) * 2 * np.pi).astype(np.float32)


def _positions(
    index: Int[np.ndarray, " n"], length: int, config: TimeEmbeddingConfig, modality: str
) -> Float64[np.ndarray, "n planes"]:
    """Position times frequency along one axis, before time comes in."""
    planes = config.trope_dim // 2
    scale = 1.0 if config.max_time is None else 2 * np.pi / config.max_time
    if config.time_embed_type == "pixel":
        position = np.linspace(-1, 1, length)[index] * (1.0 if modality == "video" else scale)
        frequencies = np.pi * np.linspace(1, 128, planes)
    else:
        position = index * scale
        theta = THETA[modality] if config.max_time is None else 1 / scale
        frequencies = theta ** -(np.arange(planes) / planes)
    return position[:, None] * frequencies
