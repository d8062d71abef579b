"""Cuts without re-encoding: the parts have the frames and the sound of their time, and nothing of the neighbours."""

import numpy as np
import pytest

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import decode
from omnivinci_jax.media.cut import cut, keyframe_times, part_suffix, spans
from omnivinci_jax.media.levels import content_of, levels_of, seconds_of, sound_levels
from tests.media.files import frame_numbers, numbered_frames, onset, tone, write_video


def keyframes_every(frames: int) -> dict[str, str]:
    return {"g": str(frames), "keyint_min": str(frames), "sc_threshold": "0"}


@pytest.mark.parametrize(
    ("name", "codec", "audio_codec", "rate"),
    [
        ("a.mp4", "libx264", "aac", 16_000),
        ("a.webm", "libvpx-vp9", "libopus", 48_000),
        ("a.mkv", "libx264", "flac", 16_000),
    ],
)
def test_the_parts_have_the_frames_and_the_sound_of_their_time(tmp_path, name, codec, audio_codec, rate):
    frames = numbered_frames(100)
    path = write_video(
        tmp_path / name, frames, fps=10, codec=codec, codec_options=keyframes_every(10),
        waveform=tone(10, start=6.5, sampling_rate=rate), sampling_rate=rate, audio_codec=audio_codec,
    )  # fmt: skip
    assert np.allclose(keyframe_times(path), np.arange(10), atol=0.03)
    outs = [tmp_path / f"part{index}{part_suffix(path)}" for index in range(3)]
    starts = [keyframe_times(path)[second] for second in (0, 4, 6)]
    cut(path, starts, outs)
    for out, first, last in zip(outs, (0, 40, 60), (40, 60, 100), strict=True):
        info = decode.probe_video(out)
        assert len(info.frame_times) == last - first
        assert frame_numbers(np.stack(list(decode.iterate_frames(out, np.arange(last - first))))) == list(
            range(first, last)
        )
        assert info.audio_seconds == pytest.approx((last - first) / 10, abs=0.08)
    assert onset(decode.read_waveform(outs[2])) == pytest.approx(0.5, abs=0.05)
    assert np.abs(decode.read_waveform(outs[1])).max() < 0.05
    again = tmp_path / f"again{part_suffix(path)}"
    cut(path, starts[1:2], [again], end=starts[2])
    assert again.read_bytes() == outs[1].read_bytes()
    silent = tmp_path / f"silent{part_suffix(path)}"
    cut(path, starts[1:2], [silent], end=starts[2], sound=False)
    assert decode.probe_video(silent).audio_seconds == 0 and len(decode.probe_video(silent).frame_times) == 20


def test_a_video_that_cannot_be_cut_leaves_no_part(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(40), fps=10, codec_options=keyframes_every(10))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    outs = [tmp_path / f"part{index}.mp4" for index in range(2)]
    with pytest.raises(MediaError, match=r"a\.mp4: is"):
        cut(path, [0.0, 2.0], outs)
    assert [item.name for item in tmp_path.iterdir()] == ["a.mp4"]


def test_spans_begin_at_the_nearest_keyframes():
    assert spans([0, 9, 21, 33, 44, 60], 0, 70, 20) == [(0, 21), (21, 44), (44, 60), (60, 70)]
    assert spans([0.0], 0, 70, 20) == [(0, 70)]
    assert spans([0, 20, 40], 0, 45, 20) == [(0, 20), (20, 45)]
    assert spans([0, 20, 40, 60, 80], 40, 80, 20) == [(40, 60), (60, 80)]


def test_levels_tell_silence_a_hum_and_pauses(tmp_path):
    random = np.random.default_rng(0)
    syllables = tone(8) * (np.sin(2 * np.pi * 2 * np.arange(8 * 16_000) / 16_000) > 0.2)
    noise = (0.1 * random.normal(size=8 * 16_000)).astype(np.float32)
    for waveform, content in (
        (tone(8), "steady"),
        (noise, "steady"),
        (syllables, "varied"),
        (1e-4 * tone(8), "silent"),
    ):
        levels = levels_of(iter(np.array_split(waveform.astype(np.float32), 7)))
        assert content_of(levels) == content and len(levels) == 160
    assert content_of(levels_of(iter([]))) == "silent" and content_of(levels_of(iter([tone(0.5)]))) == "steady"
    path = write_video(tmp_path / "a.mkv", numbered_frames(20), fps=10, waveform=tone(2, start=1), audio_codec="flac")
    assert seconds_of(sound_levels(path)) == [-100, -9]  # a sine of amplitude 0.5 has -9.03 dB
