"""Rotation angles of Audio-Visual Flamingo, the successor of OmniVinci, for its period_fix "shortest" and "longest".

Band b of a token at time t turns by 2π·b·t/t0: all bands are multiples of one frequency, and t0 comes from the clip.
The angles reach thousands of radians, where float32 is off by ten-thousandths, so we compute them on the host exactly
as the successor does, in float32 step by step, and reduce them to one turn.
"""

import numpy as np
from jaxtyping import Float32, Float64

from omnivinci_jax.config import TimeEmbeddingConfig

_SHORTEST_TIME = np.float32(1e-6)  # seconds; t0 is at least this


def harmonic_angles(times: Float64[np.ndarray, " n"], config: TimeEmbeddingConfig) -> Float32[np.ndarray, "n C"]:
    """Returns angles in [0, 2π) of the first C = trope_dim / 2 channels of all n tokens of one clip.

    Channels 0 … C/2 - 1 have the bands 1 … C/2, and the other C/2 channels the same bands again. t0 is the clip's
    smallest time above 0 (`harmonic_shortest`), or its largest time, but at most max_time (`harmonic_longest`). Times
    below 0 count as 0.

    Args:
        times: in seconds, after pooling; at least one.
        config: of the modality.
    """
    seconds = np.maximum(times.astype(np.float32), 0)
    longest = np.maximum(seconds.max(), _SHORTEST_TIME)
    if config.max_time is not None:
        longest = np.minimum(longest, np.float32(config.max_time))
    positive = seconds[seconds > 0]
    if config.scheme == "harmonic_longest" or not positive.size:
        reference = longest
    else:
        reference = np.maximum(positive.min(), _SHORTEST_TIME)
    bands = np.float32(2 * np.pi) * np.arange(1, config.trope_dim // 4 + 1, dtype=np.float32)
    angles = (seconds / reference)[:, None] * bands
    return np.tile(angles.astype(np.float64) % (2 * np.pi), 2).astype(np.float32)
