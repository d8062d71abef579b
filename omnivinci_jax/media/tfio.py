"""Decodes sound with tensorflow-io, in its own environment: `omnivinci shard --decoder tfio`, requirements/tfio.txt."""

from pathlib import Path

import numpy as np
import soundfile
import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]
import tensorflow_io as tfio  # pyright: ignore[reportMissingImports]
from jaxtyping import Float32

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import container, decode, pcm

# Formats that tensorflow-io reads; everything else (mostly videos) goes through the default decoder.
SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}


def read_waveform(
    path: container.PathLike, sampling_rate: int = 16_000, track: int | None = None
) -> Float32[np.ndarray, " samples"]:
    """Does `decode.read_waveform` with tensorflow-io instead of soundfile and PyAV for wav, flac, ogg and mp3."""
    if Path(path).suffix.lower() not in SUFFIXES or track not in (None, 1):
        return decode.read_waveform(path, sampling_rate, track=track)
    container.check_file(path)
    try:
        sound = tfio.audio.AudioIOTensor(str(path))
        rate, samples = int(sound.rate.numpy()), sound.to_tensor().numpy()
    except (tf.errors.OpError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MediaError(f"{path}: tensorflow-io cannot decode it ({reason}); try --decoder default") from None
    mono = _as_floats(samples, path).mean(axis=1)
    waveform = np.concatenate(list(pcm.resample(pcm.finite([mono], rate, path), rate, sampling_rate)))
    length = round(len(mono) / rate * sampling_rate)
    return np.pad(waveform[:length], (0, max(0, length - len(waveform))))


def _as_floats(samples: np.ndarray, path: container.PathLike) -> Float32[np.ndarray, "samples channels"]:
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    # tensorflow-io reads 32-bit integer samples as floats.
    if soundfile.info(str(path)).subtype == "PCM_32":
        raise MediaError(f"{path}: tensorflow-io misreads 32-bit integers; try --decoder default")
    return samples
