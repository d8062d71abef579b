import re
import shutil
import struct
import zlib

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import container, decode
from omnivinci_jax.media.decode import probe_audio, probe_video, read_waveform
from omnivinci_jax.media.kinds import media_kind
from omnivinci_jax.media.stills import probe_image, read_image
from tests.media.files import numbered_frames, onset, read_frames, tone, write_video


def _error(call, path) -> str:
    with pytest.raises(MediaError) as caught:
        call(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def _read_first_frame(path):
    return read_frames(path, [0])


READERS = [probe_video, _read_first_frame, probe_audio, read_waveform, probe_image, read_image]


@pytest.mark.parametrize("reader", READERS)
def test_missing_empty_and_foreign_files_raise_one_line_errors(tmp_path, reader, capfd):
    assert _error(reader, tmp_path / "a.mp4") == "no such file"
    assert "directory" in _error(reader, tmp_path)
    for suffix in (".mp4", ".wav", ".jpg"):
        (tmp_path / f"empty{suffix}").touch()
        assert "empty" in _error(reader, tmp_path / f"empty{suffix}")
        (tmp_path / f"text{suffix}").write_text("not a film\n" * 99)
        assert _error(reader, tmp_path / f"text{suffix}")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("reader", READERS[:4])
def test_truncated_files_raise_errors(tmp_path, clips, reader, capfd):
    whole = (clips / "h264.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) // 2])
    assert "cut off" in _error(reader, tmp_path / "a.mp4")
    whole = (clips / "front.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole[: len(whole) * 7 // 10])
    message = re.fullmatch(r"is cut off at ([\d.]+) s of 6\.0 s", _error(reader, tmp_path / "b.mp4"))
    assert message and 2 < float(message[1]) < 5.5
    assert capfd.readouterr() == ("", "")


def test_a_truncated_packet_raises_an_error(tmp_path, clips, monkeypatch):
    whole = (clips / "front.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) * 7 // 10])
    # As in long AVI and fragmented files, whose packets are not all indexed when they are opened.
    monkeypatch.setattr(container, "check_complete", lambda *args: None)
    assert "is damaged or cut off at" in _error(probe_video, tmp_path / "a.mp4")


@pytest.mark.parametrize("length", [6, 40])
def test_damage_is_reported_up_to_the_next_keyframe(tmp_path, length, capfd, monkeypatch):
    path = write_video(
        tmp_path / "a.mp4",
        numbered_frames(72, 120, 160),
        fps=12,
        codec_options={"g": "48", "bf": "0", "sc_threshold": "0"},
    )
    whole = read_frames(path, range(72))
    with av.open(str(path)) as opened:
        positions = [packet.pos for packet in opened.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    data[positions[20] + 12 : positions[20] + 12 + length] = b"\x55" * length
    path.write_bytes(data)
    assert len(probe_video(path).frame_times) == 72
    np.testing.assert_array_equal(read_frames(path, [0, 19]), whole[[0, 19]])
    assert "is damaged" in _error(lambda path: read_frames(path, [20]), path)
    assert "is damaged" in _error(lambda path: read_frames(path, [0, 40]), path)
    np.testing.assert_array_equal(read_frames(path, [0, 71]), whole[[0, 71]])
    if length == 6:  # the decoder conceals this damage and goes on
        monkeypatch.setattr(decode, "_SEEK_FRAMES", 1_000)
        np.testing.assert_array_equal(read_frames(path, [0, 71]), whole[[0, 71]])
    assert capfd.readouterr() == ("", "")


def test_missing_streams_raise_errors(tmp_path, clips):
    silent = write_video(tmp_path / "a.mp4", numbered_frames(4))
    assert "no sound stream" in _error(read_waveform, silent)
    assert "no sound stream" in _error(probe_audio, silent)
    sound = write_video(tmp_path / "b.mp4", None, waveform=tone(1))
    assert "no video stream" in _error(probe_video, sound)
    assert "no video stream" in _error(_read_first_frame, sound)
    soundfile.write(tmp_path / "c.wav", np.zeros(0), 16_000)
    assert probe_audio(tmp_path / "c.wav") == 0.0
    assert "no samples" in _error(read_waveform, tmp_path / "c.wav")
    assert "no frame 72" in _error(lambda path: read_frames(path, [0, 72]), clips / "h264.mp4")


def test_unknown_codecs_raise_errors(tmp_path, clips):
    whole = (clips / "h264.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole.replace(b"avc1", b"zzzz"))
    assert "codec of its video stream" in _error(probe_video, tmp_path / "a.mp4")
    assert onset(read_waveform(tmp_path / "a.mp4")) == pytest.approx(1.0, abs=0.002)
    path = write_video(tmp_path / "b.mov", numbered_frames(4), waveform=tone(1), audio_codec="pcm_s16le")
    path.write_bytes(path.read_bytes().replace(b"sowt", b"zzzz"))
    assert "codec of its audio stream" in _error(read_waveform, path)
    assert "codec of its audio stream" in _error(probe_video, path)


def test_texts_and_playlists_are_not_media(tmp_path, clips):
    (tmp_path / "a.txt").write_text("a line\n" * 99)
    (tmp_path / "a.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:6,\n{clips}/h264.ts\n#EXT-X-ENDLIST\n")
    shutil.copy(clips / "h264.ts", tmp_path)
    (tmp_path / "a.ffconcat").write_text("ffconcat version 1.0\nfile h264.ts\n")
    for name in ("a.txt", "a.m3u8", "a.ffconcat"):
        for reader in (*READERS[:4], media_kind):
            assert "not a media file" in _error(reader, tmp_path / name)


def test_a_damaged_flac_raises_an_error(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000)
    soundfile.write(tmp_path / "a.flac", noise, 16_000)
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[: len(whole) // 2])
    assert _error(read_waveform, tmp_path / "a.flac")


def test_damaged_images_raise_errors(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2_000])
    assert "truncated" in _error(read_image, path)
    assert probe_image(path) == (64, 64)
    path = tmp_path / "b.png"
    Image.new("RGB", (64, 64)).save(path)
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    assert "bomb" in _error(read_image, path)
    assert "bomb" in _error(probe_image, path)
    Image.new("F", (64, 64)).save(tmp_path / "c.tiff")
    assert "floats" in _error(read_image, tmp_path / "c.tiff")
