"""The reference's recorded outputs and the tiny model that they came from."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from conversion.loading import load_model
from omnivinci_jax.config import (
    AFWhisperConfig,
    OmniAlignConfig,
    OmniVinciConfig,
    Qwen2Config,
    SiglipConfig,
    TimeEmbeddingConfig,
)

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference outputs (shared/golden) are not here")

CHECKPOINT = GOLDEN / "checkpoint_merged"
_TIME = TimeEmbeddingConfig(scheme="crte", max_time=60.0, trope_dim=32)
CONFIG = OmniVinciConfig(
    text=Qwen2Config(400, 64, 128, 3, 4, 2),
    vision=SiglipConfig(32, 64, 3, 4, 56, 14),
    audio=AFWhisperConfig(32, 64, 3, 4, 128, 50),
    s2_scales=(56, 112, 168),
    pool_sizes=((2, 1, 1),),
    audio_compression="none",
    video_time=_TIME,
    sound_time=_TIME,
    omni_align=OmniAlignConfig(num_heads=4),
)


@cache
def params() -> dict:
    """Returns the recorded checkpoint's parameters; OmniAlignNet, which is not released, is initialised."""
    return load_model(CHECKPOINT)[1]


@cache
def case(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "cases" / f"{name}.npz"))


@cache
def part(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "parts" / f"{name}.npz"))


def pixels(normalised: np.ndarray) -> np.ndarray:
    """Converts normalised [n, 3, side, side] pixels to [n, side, side, 3] in 0 … 255 (not rounded)."""
    return ((normalised.astype(np.float64) * 0.5 + 0.5) * 255).transpose(0, 2, 3, 1).astype(np.float32)


def assert_close(actual: object, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=atol)
