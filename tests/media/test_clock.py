"""Files whose frames have no times, or whose clock starts again."""

import numpy as np
import pytest
import soundfile

from omnivinci_jax.media.decode import probe_audio, probe_video, read_waveform
from tests.media.files import frame_numbers, hertz, join, numbered_frames, onset, read_frames, tone, write_video

_TS = {"fps": 12, "sampling_rate": 48_000, "codec_options": {"bf": "2", "g": "12"}}
_MPG = {"fps": 25, "sampling_rate": 48_000, "codec": "mpeg1video", "audio_codec": "mp2"}
_MKV = {"fps": 12, "sampling_rate": 48_000, "codec_options": {"bf": "2", "g": "12"}, "audio_codec": "flac"}


@pytest.mark.parametrize(("suffix", "options"), [("ts", _TS), ("mpg", _MPG), ("vob", _MPG), ("mkv", _MKV)])
def test_joined_recordings_go_on(tmp_path, suffix, options):
    frames, fps = numbered_frames(72), options["fps"]
    seconds = 36 / fps
    for part, start in (("a", 0.5), ("b", 1.0)):
        shown = frames[:36] if part == "a" else frames[36:]
        waveform = tone(seconds, start, 48_000, hertz=500 if part == "a" else 1_000)
        write_video(tmp_path / f"{part}.{suffix}", shown, waveform=waveform, **options)
    path = join(tmp_path / f"joined.{suffix}", tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}")
    info = probe_video(path)
    assert frame_numbers(read_frames(path, range(72))) == list(range(72))
    gap = info.frame_times[36] - info.frame_times[35]
    assert 0.9 / fps < gap < 1 / fps + 0.3  # the sound of the first part may be longer than its frames
    assert info.duration == pytest.approx(2 * seconds, abs=0.3)
    waveform = read_waveform(path)
    assert len(waveform) == round(info.audio_seconds * 16_000) == round(probe_audio(path) * 16_000)
    # In both parts, the tone starts at the same time after the part's first frame.
    second = waveform[round(info.frame_times[36] * 16_000) :]
    assert onset(waveform[round(info.frame_times[0] * 16_000) :]) == pytest.approx(0.5, abs=0.05)
    assert onset(second) == pytest.approx(1.0, abs=0.05)
    assert hertz(waveform[10_000:18_000]) == pytest.approx(500, abs=5)
    assert hertz(second[17_000:20_000]) == pytest.approx(1_000, abs=10)


@pytest.mark.parametrize("order", ["early late", "late early"])
def test_a_joined_broadcast_goes_on_at_any_time(tmp_path, order):
    frames, times = numbered_frames(48), np.arange(24) / 12
    sound = {"waveform": tone(2, 0.5, 48_000), "sampling_rate": 48_000}
    early = write_video(tmp_path / "early.ts", frames[:24], times=list(times), **sound)
    late = write_video(tmp_path / "late.ts", frames[24:], times=list(times + 100), audio_start=100.0, **sound)
    parts = (early, late) if order == "early late" else (late, early)
    path = join(tmp_path / "joined.ts", *parts)
    info = probe_video(path)
    assert (info.duration, info.audio_seconds) == (pytest.approx(4.0, abs=0.2), pytest.approx(4.0, abs=0.2))
    assert sorted(frame_numbers(read_frames(path, range(48)))) == list(range(48))
    waveform = read_waveform(path)
    assert onset(waveform) == pytest.approx(0.5, abs=0.1)
    assert onset(waveform[33_600:]) + 2.1 == pytest.approx(2.5, abs=0.15)


def test_a_picture_that_is_shown_for_long_is_not_a_joint(tmp_path):
    sound = {"waveform": tone(30, 25, 48_000), "sampling_rate": 48_000}
    path = write_video(tmp_path / "a.ts", numbered_frames(3), times=[0.0, 12.0, 29.0], **sound)
    info = probe_video(path)
    np.testing.assert_allclose(np.diff(info.frame_times), [12.0, 17.0], atol=0.01)
    assert onset(read_waveform(path)) == pytest.approx(25.0, abs=0.1)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("opus", "libopus"), ("oga", "flac"), ("ogg", "vorbis"), ("flac", "flac"), ("mp3", "libmp3lame"), ("ac3", "ac3")],
)
def test_joined_sounds_are_read_to_the_end(tmp_path, suffix, codec):
    for part, start, pitch in (("a", 0.5, 500), ("b", 1.0, 1_000)):
        path, waveform = tmp_path / f"{part}.{suffix}", tone(2, start, 48_000, hertz=pitch)
        if codec == "vorbis":
            soundfile.write(path, waveform, 48_000, format="OGG", subtype="VORBIS")
        else:
            write_video(path, None, waveform=waveform, sampling_rate=48_000, audio_codec=codec)
    path = join(tmp_path / f"joined.{suffix}", tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}")
    waveform = read_waveform(path)
    assert len(waveform) == round(probe_audio(path) * 16_000)
    # An encoder pads the end of a file; FFmpeg may lose a FLAC file's last frame before the next one's header.
    joint = 0.03 if suffix in ("opus", "oga", "ogg") else 0.1
    assert len(waveform) / 16_000 == pytest.approx(4.0, abs=joint)
    assert onset(waveform) == pytest.approx(0.5, abs=0.02)
    assert onset(waveform[33_000:]) == pytest.approx(3.0 - 33 / 16, abs=joint)
    assert hertz(waveform[10_000:30_000]) == pytest.approx(500, abs=2)
    assert hertz(waveform[50_000:62_000]) == pytest.approx(1_000, abs=2)


def test_padding_that_is_longer_than_the_last_packet_is_cut(tmp_path):
    soundfile.write(tmp_path / "a.ogg", tone(1), 16_000, format="OGG", subtype="VORBIS")
    assert (probe_audio(tmp_path / "a.ogg"), len(read_waveform(tmp_path / "a.ogg"))) == (1.0, 16_000)


@pytest.mark.parametrize("suffix", ["wma", "wmv"])
def test_a_last_frame_without_a_time_follows_the_one_before(tmp_path, suffix):
    frames = numbered_frames(48) if suffix == "wmv" else None
    path = write_video(
        tmp_path / f"a.{suffix}",
        frames,
        fps=12,
        codec="wmv2",
        waveform=tone(4, 1, 44_100),
        sampling_rate=44_100,
        audio_codec="wmav2",
        audio_bit_rate=64_000,
    )
    waveform = read_waveform(path)
    assert len(waveform) / 16_000 == pytest.approx(4.0, abs=0.1)
    assert onset(waveform) == pytest.approx(1.0, abs=0.1)
    assert hertz(waveform[20_000:60_000]) == pytest.approx(440, abs=1)
    assert np.abs(waveform[60_000:63_000]).max() == pytest.approx(0.5, abs=0.1)
    if frames is not None:
        info = probe_video(path)
        assert frame_numbers(read_frames(path, range(48))) == list(range(48))
        np.testing.assert_allclose(np.diff(info.frame_times), 1 / 12, atol=0.002)


@pytest.mark.parametrize(("suffix", "codec"), [("h264", "libx264"), ("hevc", "libx265"), ("mjpeg", "mjpeg")])
def test_frames_of_a_stream_without_times_follow_each_other(tmp_path, suffix, codec, capfd):
    options = {"libx264": {"bf": "2"}, "libx265": {"x265-params": "bframes=2:log-level=none"}, "mjpeg": {}}[codec]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = tmp_path / f"a.{suffix}"
    write_video(path, numbered_frames(30), fps=25, codec=codec, codec_options=options, pix_fmt=pix_fmt)
    info = probe_video(path)
    np.testing.assert_allclose(info.frame_times, np.arange(30) / 25, atol=1e-6)
    assert info.duration == pytest.approx(1.2)
    assert frame_numbers(read_frames(path, [0, 1, 2, 17, 29])) == [0, 1, 2, 17, 29]
