"""Log-mel windows of a waveform: Whisper's features with 128 mel bins (paper, Section 2.1 and Appendix C.1)."""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Float64

# Whisper's mel scale ends at 8 kHz whatever the sampling rate.
_MAX_HERTZ = 8_000.0
# Spectra are computed in blocks of frames that fit a core's cache (twice as fast as blocks of 2,048). This also keeps
# the spectra of an hour of sound (360,000 frames) out of memory.
_BLOCK_FRAMES = 256


def log_mel(
    waveform: Float32[np.ndarray, " samples"],
    sampling_rate: int = 16_000,
    n_fft: int = 400,
    hop_length: int = 160,
    num_mel_bins: int = 128,
) -> Float32[np.ndarray, "frames mel"]:
    """Computes Whisper's log-mel spectrogram: samples // hop_length frames, frame i centred on sample i · hop_length.

    Reflection padding, Hann window, power spectrum; log10 is clamped to 8 below the maximum of the whole waveform,
    then scaled to (x + 4) / 4.

    Args:
        waveform: at least hop_length samples.
        sampling_rate: in Hz.
        n_fft: samples per FFT window.
        hop_length: samples from one frame to the next.
        num_mel_bins: number of mel filters.
    """
    padded = np.pad(waveform.astype(np.float32, copy=False), n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop_length][: waveform.size // hop_length]
    window = np.hanning(n_fft + 1)[:-1]
    filters = mel_filters(sampling_rate, n_fft, num_mel_bins)
    features = np.empty((len(frames), num_mel_bins), np.float32)
    for start in range(0, len(frames), _BLOCK_FRAMES):
        spectrum = np.fft.rfft(frames[start : start + _BLOCK_FRAMES] * window)
        power = spectrum.real**2 + spectrum.imag**2
        features[start : start + _BLOCK_FRAMES] = np.log10(np.maximum(power @ filters, 1e-10))
    np.maximum(features, features.max() - 8.0, out=features)
    features += 4.0
    features /= 4.0
    return features


def mel_windows(
    waveform: Float32[np.ndarray, " samples"],
    *,
    window_frames: int,
    hop_length: int,
    n_fft: int = 400,
    num_mel_bins: int = 128,
    sampling_rate: int = 16_000,
) -> Float32[np.ndarray, "windows window_frames mel"]:
    """Returns the log-mel of a waveform in windows; zero frames fill the last window, as in the released code.

    The log-mel is computed over the whole waveform, so all windows share one maximum.

    Args:
        waveform: with its padding (`OmniVinciConfig.padded_samples`).
        window_frames: mel frames in a window.
        hop_length, n_fft, num_mel_bins, sampling_rate: as in `log_mel`.
    """
    features = log_mel(waveform, sampling_rate, n_fft, hop_length, num_mel_bins)
    features = np.pad(features, ((0, -len(features) % window_frames), (0, 0)))
    return features.reshape(-1, window_frames, num_mel_bins)


@lru_cache
def mel_filters(sampling_rate: int, n_fft: int, num_mel_bins: int) -> Float64[np.ndarray, "bins mel"]:
    """Returns Slaney's triangular mel filters, each of area 1, from n_fft // 2 + 1 spectrum bins to mel bins."""
    corners = _mel_to_hertz(np.linspace(0.0, _hertz_to_mel(_MAX_HERTZ), num_mel_bins + 2))
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    bins = np.linspace(0.0, sampling_rate / 2, n_fft // 2 + 1)[:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    return np.maximum(triangles, 0.0) * 2.0 / (high - low)


# Slaney's scale: linear up to 1 kHz (15 mel; 3 mel per 200 Hz), logarithmic above (27 mel per factor of 6.4).


def _hertz_to_mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1_000 else 15 + 27 * math.log(hertz / 1_000) / math.log(6.4)


def _mel_to_hertz(mel: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return np.where(mel < 15, 200 * mel / 3, 1_000 * np.exp((mel - 15) * math.log(6.4) / 27))
