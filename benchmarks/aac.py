"""Compares the log-mel of AAC sound with the Transformers port's, step by step, and both resamplers with an ideal one.

python benchmarks/aac.py

The port cannot open AAC with soundfile; its fallback decodes with PyAV and lets FFmpeg mix the channels and resample.
"""

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soxr
from jaxtyping import Float, Float32
from scipy.signal import resample as resample_by_fft

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.media.audio import log_mel
from omnivinci_jax.media.decode import read_waveform

SECONDS, RATE = 11.3, 16_000


def write_aac(path: Path, waveform: Float32[np.ndarray, "c t"], rate: int) -> None:
    """Writes an MPEG-4 file with FFmpeg's AAC encoder."""
    layout = {1: "mono", 2: "stereo"}[len(waveform)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        container.mux(stream.encode(frame_of(waveform, rate)))
        container.mux(stream.encode())


def frame_of(waveform: Float32[np.ndarray, "c t"], rate: int) -> av.AudioFrame:
    """Returns a frame with all samples."""
    layout = {1: "mono", 2: "stereo"}[len(waveform)]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform, np.float32), "fltp", layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return frame


def ffmpeg_resample(waveform: Float32[np.ndarray, "c t"], rate: int) -> Float32[np.ndarray, " t"]:
    """Mixes to one channel and resamples, as the port's fallback does."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
    frames = [*resampler.resample(frame_of(waveform, rate)), *resampler.resample(None)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def soxr_resample(waveform: Float[np.ndarray, " t"], rate: int) -> Float32[np.ndarray, " t"]:
    """Resamples as librosa and read_waveform do."""
    return soxr.resample(waveform, rate, RATE, quality="HQ").astype(np.float32)


def mel_of(waveform: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, "frames mel"]:
    """Returns the log-mel of the waveform, padded to 30 s."""
    return log_mel(np.pad(waveform, (0, OmniVinciConfig().window_samples - len(waveform))))


def difference(a: Float32[np.ndarray, " t"], b: Float32[np.ndarray, " t"]) -> str:
    """Formats the largest and the mean difference of two log-mels."""
    distance = np.abs(mel_of(a) - mel_of(b))
    return f"{distance.max():.3f} {distance.mean():.0e}"


def steps(path: Path, rate: int) -> list[str]:
    """Returns log-mel differences: of each step from ours to the port's, and of both."""
    ours = read_waveform(path, RATE)
    with av.open(str(path)) as container:
        decoded = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    mono = decoded.mean(axis=0)
    everything = soxr_resample(mono, rate)
    resampled, port = ffmpeg_resample(mono[None], rate), ffmpeg_resample(decoded, rate)
    pairs = [(ours, everything), (everything, resampled), (resampled, port), (ours, port)]
    return [difference(a, b) for a, b in pairs]


def decibels(x: Float[np.ndarray, " t"], reference: float) -> float:
    """Returns the level of the middle of a waveform relative to `reference`, both root mean squares."""
    middle = x[len(x) // 4 : -len(x) // 4].astype(np.float64)
    return 20 * np.log10(np.sqrt((middle**2).mean()) / reference)


def main() -> None:
    rng = np.random.default_rng(0)
    print("| AAC | end padding | resampler | channels | ours and the port |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for rate in (16_000, 44_100, 48_000):
            for channels in (1, 2):
                path = Path(folder) / f"{rate}_{channels}.m4a"
                sound = rng.normal(scale=0.1, size=(channels, round(SECONDS * rate)))
                write_aac(path, sound.astype(np.float32), rate)
                print(f"| {rate / 1000:g} kHz, {channels} | " + " | ".join(steps(path, rate)) + " |")

    print("\n| 48 to 16 kHz | soxr HQ | FFmpeg |\n|---|---|---|")
    resamplers = (soxr_resample, lambda x, rate: ffmpeg_resample(x[None], rate))
    seconds = np.arange(round(SECONDS * 48_000)) / 48_000
    for hertz in (1_000, 7_000, 7_500, 8_200, 8_500, 9_000):
        tone = (0.5 * np.sin(2 * np.pi * hertz * seconds)).astype(np.float32)
        levels = [f"{decibels(resample(tone, 48_000), 0.5 / np.sqrt(2)):.1f} dB" for resample in resamplers]
        print(f"| tone at {hertz} Hz | " + " | ".join(levels) + " |")
    noise = rng.normal(scale=0.1, size=len(seconds)).astype(np.float32)
    ideal = mel_of(resample_by_fft(noise.astype(np.float64), round(SECONDS * RATE)).astype(np.float32))
    inner = slice(10, round(SECONDS * 100) - 10)  # without the ends, which the ideal resampler wraps around
    cells = []
    for resample in resamplers:
        distance = np.abs(mel_of(resample(noise, 48_000)) - ideal)[inner]
        cells.append(f"{distance.max():.3f} {distance.mean():.0e}, below 7 kHz {distance[:, :121].max():.3f}")
    print(f"| noise: log-mel, from ideal | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
