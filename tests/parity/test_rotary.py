"""Time embeddings of the released schemes against recorded outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnivinci_jax.config import TimeEmbeddingConfig
from omnivinci_jax.models.omnivinci import pool_frames
from omnivinci_jax.models.time_embedding import TimeEmbedding, frequencies, rotate, time_angles
from omnivinci_jax.sequence.axial import axial_angles
from omnivinci_jax.sequence.harmonic import harmonic_angles
from tests.parity.golden import assert_close, case, needs_golden, part

pytestmark = needs_golden

SCHEMES = {"shortest": "crte", "MTCT": "crte", "longest": "longest", "True": "axial", "False": "axial_reversed"}
# The error of the reference's float32 angles, which grow to 4, 2e2, 1e4 and 8e4 radians.
TOLERANCE = {
    ("crte", "pixel"): 5e-6,
    ("crte", "lang"): 5e-6,
    ("longest", "pixel"): 4e-5,
    ("longest", "lang"): 4e-5,
    ("axial", "pixel"): 4e-3,
    ("axial", "lang"): 3e-4,
    ("axial_reversed", "pixel"): 4e-2,
    ("axial_reversed", "lang"): 2e-3,
}


def config_of(period_fix, dim=32, embed_type="pixel", horizon=60.0):
    return TimeEmbeddingConfig(SCHEMES[period_fix], horizon, dim, time_embed_type=embed_type)


def pooled(frames: np.ndarray, members: object) -> np.ndarray:
    """Pools frames in pairs, without their rows and columns."""
    return np.asarray(pool_frames(jnp.asarray(frames), jnp.asarray(members), (2, 1, 1)))


@pytest.mark.parametrize("period_fix", ["shortest", "longest"])
@pytest.mark.parametrize("horizon", [60, 3600])
@pytest.mark.parametrize("dim", [32, 128])
def test_frequencies_and_angles(dim, horizon, period_fix):
    recorded, name = part("rotary_pure"), f"d{dim}_T{horizon}_{period_fix}"
    turns = frequencies(config_of(period_fix, dim, horizon=float(horizon)))
    np.testing.assert_allclose(2 * np.pi * turns, recorded[f"orig_invfreq_{name}"], rtol=1e-6)
    angles = np.asarray(time_angles(jnp.asarray(recorded["times_video"]), turns))
    assert_close(np.exp(1j * angles), np.exp(1j * recorded[f"orig_freqs_{name}"][0]), 2e-5)


@pytest.mark.parametrize("period_fix", ["shortest", "longest"])
@pytest.mark.parametrize("horizon", [60, 3600])
@pytest.mark.parametrize("modality", ["video", "sound"])
def test_rotated_tokens(modality, horizon, period_fix):
    recorded, config = part("rotary_pure"), config_of(period_fix, horizon=float(horizon))
    x, times = recorded[f"feat_{modality}"], recorded[f"times_{modality}"]
    times = np.broadcast_to(times.reshape(-1, *[1] * (x.ndim - 2)), x.shape[:-1])
    out = jax.jit(TimeEmbedding(config).apply)({}, x, times)
    assert_close(out, recorded[f"orig_applied_{modality}_d32_T{horizon}_{period_fix}"], 2e-5)


ENCODERS = [(fix, kind, T) for fix in ("True", "False") for kind in ("pixel", "lang") for T in (None, 60.0)]
ENCODERS += [(fix, kind, 60.0) for fix in ("shortest", "longest", "MTCT") for kind in ("pixel", "lang")]


@pytest.mark.parametrize("period_fix,kind,horizon", ENCODERS)
@pytest.mark.parametrize("modality", ["video", "sound"])
def test_encoder(modality, period_fix, kind, horizon):
    """Pooled in time (seven frames in pairs, the last incomplete), then embedded."""
    recorded = part("rotary_pure")
    x, times, frames = recorded[f"feat_{modality}"], recorded[f"times_{modality}"].astype(np.float64), 1
    if modality == "video":
        x = pooled(x.reshape(7, 2, 2, 64), [[0, 1], [2, 3], [4, 5], [6, -1]])
        times, frames = np.repeat(np.append(times[:6].reshape(3, 2).mean(1), times[6]), 4), 4
    config = config_of(period_fix, embed_type=kind, horizon=horizon)
    angles, tokens = None, len(x) // frames
    if config.scheme.startswith("axial"):
        frame, token = np.divmod(np.arange(len(x)), tokens)
        angles = axial_angles(frame, token, frames, tokens, times, config, modality)
    out = jax.jit(TimeEmbedding(config).apply)({}, x, times.astype(np.float32), angles)
    expected = recorded[f"enc_orig_{modality}_{period_fix}_{kind}_T{'None' if horizon is None else 60}"]
    assert_close(out, expected, TOLERANCE[config.scheme, config.time_embed_type])


@pytest.mark.parametrize("kind", ["pixel", "lang"])
@pytest.mark.parametrize("horizon", [None, 60.0])
@pytest.mark.parametrize("frames,tokens", [(5, 4), (1, 25)])
def test_axial_positions(frames, tokens, horizon, kind):
    """Recorded positions exclude time: at t = T_max (1 s without a horizon) angles are 2π (1) times positions."""
    frame, token = np.divmod(np.arange(frames * tokens), tokens)
    times = np.full(frames * tokens, 1.0 if horizon is None else horizon)
    # Recorded with a horizon as for a sound (positions scaled), and without one as for a video (base 50,000).
    modality = "sound" if horizon is not None or frames == 1 else "video"
    angles = axial_angles(frame, token, frames, tokens, times, config_of("True", 32, kind, horizon), modality)
    recorded = part("rotary_pure")[f"axial_{kind}_T{'None' if horizon is None else 60}_{frames}x{tokens}"]
    expected = recorded.reshape(-1, 64).astype(np.float64) * (1 if horizon is None else 2 * np.pi)
    assert_close(np.exp(1j * angles), np.exp(1j * expected), 3e-4)


CASES = [
    ("e_video_audio", "shortest", "shortest"),
    ("v_orig_mtct_longest_e", "longest", "longest"),
    ("v_true_pixel_e", "True", "True"),
    ("v_false_pixel_e", "False", "False"),
]


@pytest.mark.parametrize("name,video,sound", CASES)
def test_cases(name, video, sound):
    recorded = case(name)
    frames = recorded["video_encoder_in.0"].reshape(8, 2, 2, 64)
    frames = pooled(frames, np.arange(8).reshape(4, 2))
    video_times = np.repeat(recorded["video_times.0"].astype(np.float64).reshape(4, 2).mean(1), 4)
    sound_times = recorded["sound_times.0"].astype(np.float64)
    for modality, fix, x, times, count in (
        ("video", video, frames, video_times, 4),
        ("sound", sound, recorded["sound_encoder_in.0"], sound_times, 1),
    ):
        config, tokens = config_of(fix), len(x) // count
        frame, token = np.divmod(np.arange(len(x)), tokens)
        angles = axial_angles(frame, token, count, tokens, times, config, modality)
        out = jax.jit(TimeEmbedding(config).apply)({}, x, times.astype(np.float32), angles)
        assert_close(out, recorded[f"{modality}_encoder_out.0"], TOLERANCE[config.scheme, config.time_embed_type])


def test_rotation_is_interleaved():
    quarter = np.full((1, 4), np.pi / 2, np.float32)
    assert_close(
        jax.jit(rotate)(np.array([[1.0, 2.0, 3.0, 4.0, 5.0]], np.float32), quarter), [[-2.0, 1.0, -4.0, 3.0, 5.0]], 1e-6
    )


@pytest.mark.parametrize("scheme", ["shortest", "longest"])
@pytest.mark.parametrize("horizon", [60, 3600])
@pytest.mark.parametrize("dim", [32, 128])
def test_angles_of_the_successor(dim, horizon, scheme):
    recorded = part("rotary_pure")
    config = TimeEmbeddingConfig(f"harmonic_{scheme}", float(horizon), dim)
    expected = recorded[f"port_freqs_d{dim}_T{horizon}_{scheme}"][0].astype(np.float64)
    angles = harmonic_angles(recorded["times_video"].astype(np.float64), config)
    assert angles.shape == expected.shape == (7, dim // 2) and angles.max() < 6.2832 < 50 < expected.max()
    turned = np.abs(angles - expected + np.pi) % (2 * np.pi) - np.pi  # the difference, in -π … π
    assert np.abs(turned).max() <= 1e-6 * expected.max()


@pytest.mark.parametrize("scheme", ["shortest", "longest"])
@pytest.mark.parametrize("horizon", [60, 3600])
@pytest.mark.parametrize("modality", ["video", "sound"])
def test_rotated_tokens_of_the_successor(modality, horizon, scheme):
    recorded, config = part("rotary_pure"), TimeEmbeddingConfig(f"harmonic_{scheme}", float(horizon), 32)
    x, times = recorded[f"feat_{modality}"], recorded[f"times_{modality}"]
    angles = harmonic_angles(times.astype(np.float64), config)
    angles = np.broadcast_to(angles.reshape(len(times), *[1] * (x.ndim - 2), 16), (*x.shape[:-1], 16))
    out = jax.jit(TimeEmbedding(config).apply)({}, x, np.zeros(x.shape[:-1], np.float32), angles)
    assert_close(out, recorded[f"port_applied_{modality}_d32_T{horizon}_{scheme}"], 1e-5)


@pytest.mark.parametrize("period_fix", ["shortest", "longest", "MTCT"])
def test_video_encoder_of_the_successor(period_fix):
    """t0 comes from the pooled times; without a period, the successor's default is the longest."""
    recorded = part("rotary_pure")
    scheme = "harmonic_shortest" if period_fix == "shortest" else "harmonic_longest"
    x, times = recorded["feat_video"], recorded["times_video"].astype(np.float64)
    x = pooled(x.reshape(7, 2, 2, 64), [[0, 1], [2, 3], [4, 5], [6, -1]])
    times = np.repeat(np.append(times[:6].reshape(3, 2).mean(1), times[6]), 4)
    config = TimeEmbeddingConfig(scheme, 60.0, 32)
    out = jax.jit(TimeEmbedding(config).apply)({}, x, np.zeros(16, np.float32), harmonic_angles(times, config))
    assert_close(out, recorded[f"enc_port_video_{period_fix}_pixel_T60"], 1e-5)


def test_times_of_the_successor_below_zero_count_as_zero_and_the_horizon_bounds_the_longest():
    config = TimeEmbeddingConfig("harmonic_longest", 10.0, 8)
    angles = harmonic_angles(np.array([-3.0, 0.0, 2.5, 25.0]), config)
    bands = np.array([1, 2, 1, 2])
    assert_close(angles, 2 * np.pi * np.outer([0, 0, 0.25, 2.5], bands) % (2 * np.pi), 2e-6)
    assert (harmonic_angles(np.zeros(3), TimeEmbeddingConfig("harmonic_shortest", None, 8)) == 0).all()
