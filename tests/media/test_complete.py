"""A file whose end is missing is not a shorter file."""

import re

import pytest
import soundfile

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media.complete import declared_bytes
from omnivinci_jax.media.decode import probe_audio, probe_video, read_waveform
from tests.media.files import numbered_frames, read_frames, tone, write_video

# How each file is written, and how well it knows how long it should be: to a tenth of a second, or not at all.
_SOUNDS = {
    "a.wav": "PCM_16",
    "a.flac": "PCM_16",
    "a.aiff": "PCM_16",
    "a.au": "PCM_16",
    "a.caf": "PCM_16",
    "a.w64": "PCM_16",
    "rf64.wav": "PCM_16",
    "a.mp3": "libmp3lame",
    "a.mka": "flac",
    "a.tta": "tta",
    "a.wma": "wmav2",
    "a.opus": "libopus",
}
_VIDEOS = {
    "a.mkv": {},
    "a.webm": {"codec": "libvpx-vp9", "audio_codec": "libopus", "codec_options": {"cpu-used": "8"}},
    "a.flv": {"codec": "flv"},
    "a.avi": {"audio_codec": "libmp3lame"},
    "a.wmv": {"codec": "wmv2", "audio_codec": "wmav2", "audio_bit_rate": 64_000},
    "front.mp4": {"container_options": {"movflags": "faststart"}},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "codec_options": {"g": "12"}},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name, codec in _SOUNDS.items():
        if codec == "PCM_16":
            file_format = "RF64" if name == "rf64.wav" else None
            soundfile.write(folder / name, tone(4, sampling_rate=48_000), 48_000, subtype=codec, format=file_format)
        else:
            sound = {"waveform": tone(4, sampling_rate=48_000), "sampling_rate": 48_000, "audio_bit_rate": 64_000}
            write_video(folder / name, None, audio_codec=codec, **sound)
    for name, options in _VIDEOS.items():
        rate = 44_100 if name == "a.flv" else 48_000
        sound = {"waveform": tone(4, sampling_rate=rate), "sampling_rate": rate}
        write_video(folder / name, numbered_frames(48), fps=12, **sound, **options)
    return folder


def _cut(path, folder, share=0.58):
    data = path.read_bytes()
    (folder / path.name).write_bytes(data[: round(len(data) * share)])
    return folder / path.name


@pytest.mark.parametrize("name", _SOUNDS)
def test_whole_sounds_are_read(whole, name):
    assert len(read_waveform(whole / name)) / 16_000 == pytest.approx(4.0, abs=0.1)
    assert probe_audio(whole / name) == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("name", _VIDEOS)
def test_whole_videos_are_read(whole, name):
    info = probe_video(whole / name)
    assert (info.duration, info.audio_seconds) == (pytest.approx(4.0, abs=0.2), pytest.approx(4.0, abs=0.25))


@pytest.mark.parametrize("name", _SOUNDS)
def test_half_a_sound_raises_an_error(tmp_path, whole, name, capfd):
    path = _cut(whole / name, tmp_path)
    for read in (probe_audio, read_waveform):
        with pytest.raises(MediaError) as caught:
            read(path)
        message = re.fullmatch(rf"{path}: is cut off at ([\d.]+) s(?: of ([\d.]+) s)?", str(caught.value))
        assert message, caught.value
        assert float(message[1]) == pytest.approx(2.3, abs=0.35)
        if name != "a.opus":  # Ogg does not store its length
            assert float(message[2]) == pytest.approx(4.0, abs=0.25)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", _VIDEOS)
def test_half_a_video_raises_an_error(tmp_path, whole, name, capfd):
    path = _cut(whole / name, tmp_path)
    for read in (probe_video, probe_audio, read_waveform, lambda path: read_frames(path, [0])):
        with pytest.raises(MediaError) as caught:
            read(path)
        message = re.fullmatch(rf"{path}: is cut off at ([\d.]+) s(?: of ([\d.]+) s)?", str(caught.value))
        assert message, caught.value
        assert float(message[1]) == pytest.approx(2.3, abs=0.6)
        if name != "fragments.mp4":  # each fragment knows only itself
            assert float(message[2]) == pytest.approx(4.0, abs=0.3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("share", [0.3, 0.58, 0.9])
def test_half_a_gif_raises_an_error(tmp_path, share):
    path = write_video(tmp_path / "a.gif", numbered_frames(48), fps=10, codec="gif", pix_fmt="rgb8")
    assert probe_video(path).duration == pytest.approx(4.8)
    _cut(path, tmp_path, share)
    for read in (probe_video, lambda path: read_frames(path, [0])):
        with pytest.raises(MediaError) as caught:
            read(path)
        message = re.fullmatch(rf"{path}: is cut off at ([\d.]+) s", str(caught.value))
        assert message and float(message[1]) == pytest.approx(4.8 * share, abs=0.5)


@pytest.mark.parametrize("magic", ["RIFF....WAVE", ".snd", "fLaC", "caff", "FORM", "OggS", "ID3", "....ftyp"])
def test_a_few_bytes_declare_nothing(tmp_path, magic):
    (tmp_path / "a.wav").write_bytes(magic.encode())
    assert declared_bytes(tmp_path / "a.wav") is None
    with pytest.raises(MediaError):
        read_waveform(tmp_path / "a.wav")


def test_only_the_index_is_missing(tmp_path, whole):
    path = _cut(whole / "a.mkv", tmp_path, share=1 - 20 / (whole / "a.mkv").stat().st_size)
    assert declared_bytes(path) == (whole / "a.mkv").stat().st_size
    assert probe_video(path).duration == pytest.approx(4.0, abs=0.1)


def test_bytes_after_the_end_are_ignored(tmp_path, whole):
    for name in ("a.wav", "a.mp3", "a.mkv", "front.mp4"):
        (tmp_path / name).write_bytes((whole / name).read_bytes() + b"TAG" + bytes(125))
        assert len(read_waveform(tmp_path / name)) / 16_000 == pytest.approx(4.0, abs=0.1)
