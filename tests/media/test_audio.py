from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from omnivinci_jax.config import AFWhisperConfig, OmniVinciConfig
from omnivinci_jax.media.audio import log_mel, mel_filters, mel_windows
from tests.media.files import tone

GOLDEN = Path(__file__).parents[2].parent / "shared/golden/parts/whisper_mel.npz"


def _sounds():
    generator = np.random.default_rng(0)
    noise = generator.standard_normal(50_000).astype(np.float32)
    return {
        "noise": noise,
        "fading": noise * np.exp(-np.arange(50_000) / 3_000).astype(np.float32),  # reaches the clamp at 8
        "tone": tone(2.5, 0.5),
        "silence": np.zeros(16_000, np.float32),
        "odd length": noise[:12_345],
    }


@pytest.mark.parametrize("hop_length", [160, 60])
@pytest.mark.parametrize("name", list(_sounds()))
def test_log_mel_matches_whisper(name, hop_length):
    waveform = _sounds()[name]
    # Whisper's extractor works on whole chunks: here the sound is one chunk, without padding.
    extractor = WhisperFeatureExtractor(feature_size=128, hop_length=hop_length)
    features = log_mel(waveform, hop_length=hop_length)
    assert features.dtype == np.float32
    in_float64 = extractor._np_extract_fbank_features(waveform[None], "cpu")[0].T
    np.testing.assert_allclose(features, in_float64, atol=1e-6)
    in_float32 = extractor._torch_extract_fbank_features(waveform[None])[0].T
    # In float32 the extractor itself is off by 2e-5 in one quiet bin beside the pure tone.
    np.testing.assert_allclose(features, in_float32, atol=3e-5 if name == "tone" else 1e-5)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the folder of reference outputs, ../shared/golden, is absent")
@pytest.mark.parametrize(("hop_length", "seconds"), [(160, 30), (60, 30), (160, 3)])
def test_log_mel_matches_the_released_model(hop_length, seconds):
    golden = np.load(GOLDEN)
    expected = golden[f"mel_hop{hop_length}_chunk{seconds}"][0].T
    padded = np.pad(golden["wave"], (0, seconds * 16_000 - len(golden["wave"])))
    windows = mel_windows(padded, window_frames=len(expected), hop_length=hop_length)
    assert windows.shape == (1, *expected.shape)
    np.testing.assert_allclose(windows[0], expected, atol=2e-5)


@pytest.mark.parametrize(("sampling_rate", "n_fft", "bins"), [(16_000, 400, 128), (16_000, 400, 80), (24_000, 512, 64)])
def test_mel_filters_match_slaney(sampling_rate, n_fft, bins):
    expected = mel_filter_bank(n_fft // 2 + 1, bins, 0.0, 8_000.0, sampling_rate, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(sampling_rate, n_fft, bins), expected, atol=1e-12)


def test_a_tone_appears_in_its_mel_bin_and_frames():
    features = log_mel(tone(2.0, 1.0, hertz=1_000))
    assert features.shape == (200, 128)
    corners = np.argmax(mel_filters(16_000, 400, 128)[25])  # 1 kHz is bin 25 of 40 Hz
    assert features[150].argmax() == corners
    assert int(np.argmax(features[:, corners] > features.max() - 0.5)) == pytest.approx(100, abs=1)


def test_windows_are_cut_from_one_spectrogram_and_zero_frames_fill_the_last():
    waveform = tone(2.5)
    windows = mel_windows(waveform, window_frames=100, hop_length=160)
    assert windows.shape == (3, 100, 128)
    np.testing.assert_array_equal(windows.reshape(300, 128)[:250], log_mel(waveform))
    assert (windows[2, 50:] == 0).all()
    # A quiet window is clamped relative to the loud ones, not to its own maximum.
    quiet = mel_windows(np.pad(tone(2.0), (0, 16_000)), window_frames=100, hop_length=160)[2]
    assert quiet.min() == pytest.approx(windows.max() - 2.0)


@given(
    st.floats(0, 2),
    st.sampled_from([4, 10, 25]),
    st.sampled_from([60, 160]),
    st.sampled_from([None, 0.1, 0.25, 1.0]),
)
def test_the_number_of_windows_follows_from_the_duration(seconds, window_frames, hop_length, padding):
    audio = AFWhisperConfig(max_source_positions=window_frames // 2 * 2)
    config = OmniVinciConfig(audio=audio, audio_hop_length=hop_length, audio_padding_seconds=padding)
    waveform = np.zeros(config.padded_samples(seconds), np.float32)
    assert waveform.size >= max(seconds * 16_000 - 1, 1)
    windows = mel_windows(waveform, window_frames=config.audio.window_frames, hop_length=hop_length, num_mel_bins=8)
    assert windows.shape == (config.sound_windows(seconds), config.audio.window_frames, 8)


def test_one_extra_sample_starts_another_window():
    windows = OmniVinciConfig().sound_windows
    assert [windows(seconds) for seconds in (0.0, 0.1, 30.0, 30.0001, 60.0, 3_600.0)] == [1, 1, 1, 2, 2, 120]
