"""The default tracks of a file, and the others."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media.decode import probe_audio, probe_video, read_waveform
from tests.media.files import frame_numbers, hertz, numbered_frames, read_frames, tone, write_sound_tracks

_TRACKS = {"eng": 0 * tone(2), "fra": tone(2, hertz=1_000), "deu": tone(1, hertz=2_000)}


def _write_two_videos(path, codec):
    """Writes two video and two sound tracks, of which the second ones are the default."""
    with av.open(str(path), "w") as container:
        videos = [container.add_stream(codec, rate=12, width=64, height=48, pix_fmt="yuv420p") for _ in range(2)]
        sounds = [container.add_stream("aac", rate=16_000, layout="mono") for _ in range(2)]
        for first, second in (videos, sounds):
            first.disposition, second.disposition = Disposition(0), Disposition.default
        for number, (video, sound) in enumerate(zip(videos, sounds, strict=True)):
            for index, picture in enumerate(numbered_frames(24)[12 * number : 12 * number + 12]):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 12)
                container.mux(video.encode(frame))
            container.mux(video.encode())
            samples = av.AudioFrame.from_ndarray(tone(1, hertz=500 * (number + 1))[None], "fltp", "mono")
            samples.sample_rate, samples.pts, samples.time_base = 16_000, 0, Fraction(1, 16_000)
            container.mux(sound.encode(samples) + sound.encode())
    return path


@pytest.mark.parametrize("suffix", ["mka", "mov", "mkv"])
def test_the_default_sound_track_is_read(tmp_path, suffix):
    path = write_sound_tracks(tmp_path / f"a.{suffix}", _TRACKS, default="fra")
    assert hertz(read_waveform(path)) == pytest.approx(1_000, abs=2)
    assert np.abs(read_waveform(path, track=1)).max() == 0
    assert hertz(read_waveform(path, track=3)) == pytest.approx(2_000, abs=2)
    assert (probe_audio(path), probe_audio(path, track=3)) == (2.0, 1.0)


def test_a_track_that_is_not_there_raises_an_error(tmp_path):
    path = write_sound_tracks(tmp_path / "a.mkv", _TRACKS, default="fra")
    expected = "has no sound track 4; it has 1 (eng, pcm_s16le), 2 (fra, pcm_s16le, default), 3 (deu, pcm_s16le)"
    for read in (probe_audio, read_waveform):
        with pytest.raises(MediaError) as caught:
            read(path, track=4)
        assert str(caught.value) == f"{path}: {expected}"


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("mp4", "mpeg4"), ("mov", "libx264")])
def test_default_video_and_its_sound(tmp_path, suffix, codec):
    path = _write_two_videos(tmp_path / f"a.{suffix}", codec)
    assert frame_numbers(read_frames(path, range(12))) == list(range(12, 24))
    assert hertz(read_waveform(path)) == pytest.approx(1_000, abs=5)
    assert hertz(read_waveform(path, track=1)) == pytest.approx(500, abs=5)
    assert probe_video(path).audio_seconds == pytest.approx(1.0, abs=0.1)
    with pytest.raises(MediaError, match="has no sound track 3"):
        probe_video(path, track=3)
