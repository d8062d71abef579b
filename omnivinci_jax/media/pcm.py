"""WAV and FLAC files by libsndfile, which reads them in large blocks; and checks and resampling of any samples."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import container as ffmpeg
from omnivinci_jax.media.complete import declared_bytes
from omnivinci_jax.media.container import PathLike

_SUFFIXES = {".wav", ".flac"}
# FLAC that was written to a pipe does not store its length; libsndfile then takes the largest number.
_MAX_SAMPLES = 2**48
_FLAC_HEADER = 42  # bytes
_READ_AHEAD = 2**16  # bytes; libsndfile reads a little more than it decodes


@contextmanager
def open_whole(path: PathLike, track: int | None = None) -> Iterator[soundfile.SoundFile | None]:
    """Opens a WAV or FLAC file that libsndfile reads to its end; yields None for all others, which FFmpeg reads.

    The suffix may be wrong, the header may not say the length (a pipe), the end of the file may be missing, and another
    file may follow.

    Raises:
        MediaError: there is no such file, it is empty, or it has no such track (see `container.sound_stream`).
    """
    ffmpeg.check_file(path)
    if Path(path).suffix.lower() not in _SUFFIXES or (declared_bytes(path) or 0) > Path(path).stat().st_size:
        yield None
        return
    try:
        name: Any = os.fsencode(str(path))  # it may not be UTF-8; soundfile's stubs leave out bytes
        sound_file = soundfile.SoundFile(name)
    except soundfile.LibsndfileError:
        yield None
        return
    with sound_file:
        if track not in (None, 1):
            raise ffmpeg.no_such_track(path, track, [sound_file.subtype])
        known = 0 < sound_file.frames < _MAX_SAMPLES and sound_file.samplerate in ffmpeg.SAMPLING_RATES
        yield sound_file if known and _ends_the_file(path) else None


def _ends_the_file(path: PathLike) -> bool:
    """Returns whether the last sample can be read, and no other FLAC file follows it, which libsndfile ignores.

    FLAC's header says how many samples follow, not how many bytes.
    """
    try:
        with open(path, "rb") as file, soundfile.SoundFile(file) as sound_file:
            sound_file.seek(sound_file.frames - 1)
            found = len(sound_file.read(1)) == 1
            file.seek(max(_FLAC_HEADER, file.tell() - _READ_AHEAD))
            return found and b"fLaC" not in file.read()
    except soundfile.LibsndfileError:
        return False


def mono_blocks(sound_file: soundfile.SoundFile) -> Iterator[Float32[np.ndarray, " t"]]:
    """Yields the mean of the channels in blocks."""
    for block in sound_file.blocks(2**16, dtype="float32", always_2d=True):
        with np.errstate(all="ignore"):  # `finite` reports what is not
            mono = block.mean(axis=1)
        yield mono


def finite(
    blocks: Iterable[Float32[np.ndarray, " t"]], sampling_rate: int, path: PathLike
) -> Iterator[Float32[np.ndarray, " t"]]:
    """Yields the same blocks; raises MediaError at the first sample that is NaN or infinite (files may hold floats)."""
    read = 0
    for block in blocks:
        bad = np.flatnonzero(~np.isfinite(block))
        if bad.size:
            second = (read + int(bad[0])) / sampling_rate
            raise MediaError(f"{path}: holds samples that are not finite, the first at {second:.1f} s; export it again")
        read += block.size
        yield block


def resample(
    blocks: Iterable[Float32[np.ndarray, " t"]], native_rate: int, sampling_rate: int
) -> Iterator[Float32[np.ndarray, " t"]]:
    """Resamples a waveform in blocks (soxr HQ); the result does not depend on the block sizes."""
    if native_rate == sampling_rate:
        yield from blocks
        return
    resampler = soxr.ResampleStream(native_rate, sampling_rate, num_channels=1, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def take_samples(blocks: Iterable[Float32[np.ndarray, " t"]], samples: float) -> Iterator[Float32[np.ndarray, " t"]]:
    """Yields blocks until they hold `samples` samples."""
    for block in blocks:
        yield block
        samples -= block.size
        if samples <= 0:
            return
