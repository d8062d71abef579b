"""Sound files that libsndfile would misread, and samples that are not finite."""

import struct

import numpy as np
import pytest
import soundfile

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media.decode import probe_audio, read_waveform
from tests.media.files import hertz, onset, tone, write_video


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.mka", "a.mov", "resampled.wav"])
def test_samples_that_are_not_finite_raise_errors(tmp_path, name, bad):
    path, rate = tmp_path / name, 44_100 if name == "resampled.wav" else 16_000
    waveform = tone(2, sampling_rate=rate)
    waveform[round(1.3 * rate)] = bad
    if name.endswith(("wav", "aiff")):
        soundfile.write(path, np.stack([tone(2, sampling_rate=rate), waveform], axis=1), rate, subtype="FLOAT")
    else:
        write_video(path, None, waveform=waveform, sampling_rate=rate, audio_codec="pcm_f32le")
    with pytest.raises(MediaError, match=r"holds samples that are not finite, the first at 1\.3 s"):
        read_waveform(path)


def test_large_samples_do_not_become_infinite(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full((16_000, 2), 3e38, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match="not finite"):
        read_waveform(tmp_path / "a.wav")


def test_flac_from_a_pipe_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(3, 1), 16_000)
    whole = bytearray(path.read_bytes())
    # A pipe cannot be sought, so the count of samples in STREAMINFO (36 bits) stays 0.
    whole[21] &= 0xF0
    whole[22:26] = bytes(4)
    path.write_bytes(whole)
    waveform = read_waveform(path)
    assert (probe_audio(path), len(waveform)) == (pytest.approx(3.0, abs=0.001), pytest.approx(48_000, abs=16))
    np.testing.assert_allclose(waveform[:47_900], tone(3, 1)[:47_900], atol=1e-4)


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0xFFFF_FFFF - 36, 0x7FFF_FFFF - 36, 0])
def test_wav_from_a_pipe_is_read_to_its_end(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(3, 1), 16_000)
    whole = bytearray(path.read_bytes())
    struct.pack_into("<I", whole, 4, size)
    struct.pack_into("<I", whole, whole.index(b"data") + 4, size)
    path.write_bytes(whole)
    assert probe_audio(path) == 3.0
    np.testing.assert_allclose(read_waveform(path), tone(3, 1), atol=1e-4)


def test_au_from_a_pipe_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.au"
    soundfile.write(path, tone(3, 1), 16_000)
    whole = bytearray(path.read_bytes())
    struct.pack_into(">I", whole, 8, 0xFFFF_FFFF)
    path.write_bytes(whole)
    assert probe_audio(path) == 3.0
    waveform = read_waveform(path)
    assert (onset(waveform), hertz(waveform[20_000:])) == (pytest.approx(1.0, abs=0.001), pytest.approx(440, abs=1))


def test_an_absurd_sampling_rate_raises_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1), 16_000)
    whole = bytearray((tmp_path / "a.wav").read_bytes())
    struct.pack_into("<I", whole, 24, 1)  # would become 16,000 seconds
    (tmp_path / "a.wav").write_bytes(whole)
    for read in (probe_audio, read_waveform):
        with pytest.raises(MediaError, match="sampling rate would be 1 Hz"):
            read(tmp_path / "a.wav")
