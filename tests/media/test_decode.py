import shutil
import struct
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import av
import numpy as np
import pytest
import soundfile
import soxr
from av.stream import Disposition
from PIL import Image

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import container as ffmpeg
from omnivinci_jax.media import decode
from omnivinci_jax.media.decode import (
    probe_audio,
    probe_video,
    read_waveform,
)
from omnivinci_jax.media.frame_sampling import uniform_indices
from omnivinci_jax.media.kinds import media_kind
from omnivinci_jax.media.stills import probe_image, read_image
from tests.media.files import frame_numbers, numbered_frames, onset, read_frames, tone, write_video

ALL_CLIPS = ["h264.mp4", "h264.mkv", "h264.ts", "hevc.mp4", "vp9.webm", "h264.avi"]


@pytest.mark.parametrize("name", ALL_CLIPS)
def test_frames_times_and_sound_of_a_clip_agree(clips, name):
    info = probe_video(clips / name)
    assert (info.width, info.height, len(info.frame_times)) == (64, 48, 72)
    np.testing.assert_allclose(np.diff(info.frame_times), 1 / 12, atol=0.0021)  # Matroska's clock ticks in ms
    assert frame_numbers(read_frames(clips / name, range(72))) == list(range(72))
    waveform = read_waveform(clips / name)
    assert len(waveform) == round(info.audio_seconds * 16_000)
    assert probe_audio(clips / name) == info.audio_seconds
    # The tone starts at frame 12; AVI and TS do not record the encoder's priming of about 1,000 samples.
    late = 0.09 if name.endswith(("avi", "ts")) else 0.002
    assert onset(waveform) == pytest.approx(info.frame_times[12], abs=late)


def test_probe_is_exact_for_mp4(clips):
    info = probe_video(clips / "h264.mp4")
    np.testing.assert_allclose(info.frame_times, np.arange(72) / 12, atol=1e-9)
    assert info.frame_times[0] == 0.0
    assert (info.duration, info.audio_seconds) == (6.0, 6.0)


def test_frames_are_stored_out_of_order(clips):
    with av.open(str(clips / "h264.mp4")) as opened:
        stamps = [packet.pts for packet in opened.demux(video=0) if packet.size]
    assert stamps != sorted(stamps)


@pytest.mark.parametrize("name", ALL_CLIPS)
def test_seeking_gives_the_same_frames_as_sequential_decoding(clips, name, monkeypatch):
    everything = read_frames(clips / name, range(72))
    monkeypatch.setattr(decode, "_SEEK_FRAMES", 0)
    generator = np.random.default_rng(0)
    for _ in range(5):
        indices = generator.choice(72, 3)  # in any order, repeated too
        np.testing.assert_array_equal(read_frames(clips / name, indices), everything[indices])


def test_far_frames_are_reached_by_seeking(clips, monkeypatch):
    decoded = []
    reference = decode.ffmpeg.decode_packets
    monkeypatch.setattr(
        decode.ffmpeg, "decode_packets", lambda *args: (decoded.append(frame) or frame for frame in reference(*args))
    )
    assert frame_numbers(read_frames(clips / "h264.mp4", [2, 65])) == [2, 65]
    assert len(decoded) < 20


def test_variable_frame_rate_keeps_true_times(tmp_path):
    times = [0.0, 0.1, 0.2, 1.0, 1.05, 2.0]
    path = write_video(tmp_path / "a.mp4", numbered_frames(6), times=times)
    info = probe_video(path)
    np.testing.assert_allclose(info.frame_times, times, atol=1e-4)
    indices = uniform_indices(info.frame_times, info.duration, fps=4, max_frames=100)
    assert indices.tolist() == [1, 2, 4]  # frame 2 is shown for 0.8 of 2.04 s
    assert frame_numbers(read_frames(path, indices)) == indices.tolist()


def test_odd_sizes_and_one_frame(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(1, 63, 97), fps=4, pix_fmt="yuv444p")
    info = probe_video(path)
    assert (info.width, info.height, info.frame_times.tolist(), info.duration) == (97, 63, [0.0], 0.25)
    assert (info.audio_seconds, read_frames(path, [0]).shape) == (0.0, (1, 63, 97, 3))
    path = write_video(tmp_path / "b.webm", numbered_frames(3, 63, 97), fps=4, codec="libvpx-vp9")
    assert frame_numbers(read_frames(path, [0, 1, 2])) == [0, 1, 2]


def test_frames_are_scaled_to_the_first_size_of_a_changing_stream(tmp_path):
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as opened:
        stream = opened.add_stream("libvpx-vp9", rate=4, width=96, height=64, pix_fmt="yuv420p")
        smaller = av.CodecContext.create("libvpx-vp9", "w")
        smaller.width, smaller.height, smaller.pix_fmt, smaller.time_base = 48, 32, "yuv420p", Fraction(1, 4)
        for number, encoder, size in ((1, stream, (64, 96)), (2, smaller, (32, 48))):
            frame = av.VideoFrame.from_ndarray(numbered_frames(3, *size)[number], "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 4)
            for packet in encoder.encode(frame) + encoder.encode():
                packet.stream = stream
                opened.mux(packet)
    info = probe_video(path)
    assert (info.width, info.height, len(info.frame_times)) == (96, 64, 2)
    frames = read_frames(path, [0, 1])
    assert (frames.shape, frame_numbers(frames)) == ((2, 64, 96, 3), [1, 2])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_frames_are_shown_upright(tmp_path, turn, mirror):
    upright = numbered_frames(2)
    path = write_video(tmp_path / "a.mp4", upright, fps=4, turn_clockwise=turn, mirror=mirror)
    shown = np.rot90(upright, -turn // 90, axes=(1, 2))
    shown = shown[:, :, ::-1] if mirror else shown
    info = probe_video(path)
    assert (info.height, info.width) == shown.shape[1:3]
    assert np.abs(read_frames(path, [0, 1]).astype(int) - shown).mean() < 8

    with av.open(path) as opened:
        frame = next(opened.decode(video=0))
    if not mirror:
        unreadable = ValueError("31 is not a valid Type")  # side data that PyAV has no name for
        with patch.object(ffmpeg, "SideDataContainer", side_effect=unreadable):
            turned = ffmpeg.upright(upright[0], ffmpeg.display_matrix(frame))
        np.testing.assert_array_equal(turned, np.rot90(upright[0], -turn // 90))


def test_frames_outside_the_edit_list_are_left_out(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(24), fps=12, codec_options={"bf": "0"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # after the version and the count: length, first time on the stream's clock, rate
    length, start = struct.unpack_from(">ii", data, entry)
    with av.open(str(path)) as opened:
        half_a_second = round(0.5 / opened.streams.video[0].time_base)
    struct.pack_into(">ii", data, entry, length - 500, start + half_a_second)
    path.write_bytes(data)
    info = probe_video(path)
    np.testing.assert_allclose(info.frame_times, np.arange(18) / 12, atol=1e-6)
    assert info.duration == pytest.approx(1.5)
    assert frame_numbers(read_frames(path, range(18))) == list(range(6, 24))


def test_sound_that_starts_late_starts_with_silence(tmp_path):
    path = write_video(tmp_path / "a.mkv", numbered_frames(24), fps=12, waveform=tone(2), audio_start=0.7)
    waveform = read_waveform(path)
    assert onset(waveform) == pytest.approx(0.7, abs=0.002)
    assert np.abs(waveform[: int(0.69 * 16_000)]).max() < 0.01


def test_video_that_starts_late_has_late_frame_times(tmp_path):
    times = [0.5 + i / 12 for i in range(24)]
    path = write_video(tmp_path / "a.mp4", numbered_frames(24), times=times, waveform=tone(2, 0.5))
    np.testing.assert_allclose(probe_video(path).frame_times, times, atol=1e-4)
    assert onset(read_waveform(path)) == pytest.approx(0.5, abs=0.002)


def test_a_gap_in_the_sound_is_silence(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for start in (0.0, 1.5):
            frame = av.AudioFrame.from_ndarray((tone(0.5) * 32_767).astype(np.int16)[None], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, round(start * 16_000), Fraction(1, 16_000)
            container.mux(stream.encode(frame))
    waveform = read_waveform(path)
    expected = np.zeros(32_000, np.float32)
    expected[:8_000] = expected[24_000:] = tone(0.5)
    np.testing.assert_allclose(waveform, expected, atol=1e-4)


def test_stereo_flac_is_averaged_and_resampled(tmp_path):
    left, right = tone(2, 0.5, 44_100), tone(2, 0.5, 44_100, hertz=880)
    soundfile.write(tmp_path / "a.flac", np.stack([left, right], axis=1), 44_100, subtype="PCM_24")
    waveform = read_waveform(tmp_path / "a.flac")
    assert (waveform.dtype, waveform.shape, probe_audio(tmp_path / "a.flac")) == (np.float32, (32_000,), 2.0)
    np.testing.assert_allclose(waveform, soxr.resample((left + right) / 2, 44_100, 16_000, quality="HQ"), atol=1e-6)


def test_a_video_with_a_wav_suffix_is_read_as_a_video(tmp_path, clips):
    shutil.copy(clips / "h264.mp4", tmp_path / "a.wav")
    assert probe_audio(tmp_path / "a.wav") == probe_audio(clips / "h264.mp4")
    np.testing.assert_array_equal(read_waveform(tmp_path / "a.wav"), read_waveform(clips / "h264.mp4"))


def test_multi_page_images_are_images(tmp_path):
    pages = [Image.fromarray(page) for page in numbered_frames(3)]
    for name, options in (("a.gif", {}), ("a.tiff", {}), ("a.jpg", {"format": "MPO"})):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], **options)
    assert [media_kind(tmp_path / name) for name in ("a.jpg", "a.tiff", "a.gif")] == ["image", "image", "video"]


def test_8_bit_wav(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1, 0.25), 16_000, subtype="PCM_U8")
    np.testing.assert_allclose(read_waveform(tmp_path / "a.wav"), tone(1, 0.25), atol=1 / 127)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s32le", "pcm_f32le"])
def test_sample_formats_of_a_container(tmp_path, codec):
    stereo = np.stack([tone(1, 0.25), np.zeros(16_000, np.float32)])
    path = write_video(tmp_path / "a.mov", None, waveform=stereo, audio_codec=codec)
    np.testing.assert_allclose(read_waveform(path), tone(1, 0.25) / 2, atol=1 / 127 if codec == "pcm_u8" else 1e-4)


@pytest.mark.parametrize(("suffix", "codec"), [("mp3", "libmp3lame"), ("m4a", "aac")])
def test_an_encoders_priming_and_padding_are_cut(tmp_path, suffix, codec):
    path = write_video(
        tmp_path / f"a.{suffix}", None, waveform=tone(2, 0.5, 44_100), sampling_rate=44_100, audio_codec=codec
    )
    waveform = read_waveform(path)
    assert (probe_audio(path), len(waveform)) == (2.0, 32_000)
    assert onset(waveform) == pytest.approx(0.5, abs=0.002)
    # In phase with the tone, so no samples are missing or added: 10 samples would be a quarter of a period.
    middle = slice(16_000, 30_000)
    assert np.corrcoef(waveform[middle], tone(2, 0.5)[middle])[0, 1] > 0.99


def test_album_covers_and_strange_tags(tmp_path):
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1, width=64, height=48, pix_fmt="yuvj420p")
        cover.disposition = Disposition.attached_pic
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        container.metadata["title"] = "TITLE"
        frame = av.VideoFrame.from_ndarray(numbered_frames(1)[0], "rgb24")
        frame.pts, frame.time_base = 0, Fraction(1)
        container.mux(cover.encode(frame) + cover.encode())
        samples = av.AudioFrame.from_ndarray(tone(1)[None], "fltp", "mono")
        samples.sample_rate, samples.pts, samples.time_base = 16_000, 0, Fraction(1, 16_000)
        container.mux(sound.encode(samples) + sound.encode())
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"\xff\xfeTLE"))
    assert read_waveform(path).shape == (16_000,)
    with pytest.raises(MediaError, match="has no video stream"):
        probe_video(path)


def test_a_file_name_may_contain_a_colon(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", numbered_frames(2)).rename(tmp_path / "talk:1.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read_frames("talk:1.mp4", [0, 1])) == 2


def _save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_image_modes(tmp_path):
    pixels = numbered_frames(6)[5]
    np.testing.assert_array_equal(read_image(_save(tmp_path / "rgb.png", pixels)), pixels)
    np.testing.assert_array_equal(read_image(_save(tmp_path / "grey.png", pixels, "L")), pixels)
    np.testing.assert_array_equal(read_image(_save(tmp_path / "palette.gif", pixels[..., 0], "P")), pixels)
    deep = np.maximum(pixels[..., 0].astype(int) * 257 - 100, 0).astype(np.uint16)  # to be rounded up again
    np.testing.assert_array_equal(read_image(_save(tmp_path / "deep.png", deep)), pixels)
    np.testing.assert_array_equal(read_image(_save(tmp_path / "deep.tiff", deep)), pixels)
    cmyk = read_image(_save(tmp_path / "cmyk.jpg", pixels, "CMYK", quality=95))
    assert np.abs(cmyk.astype(int) - pixels).mean() < 3


def test_transparent_pixels_are_white(tmp_path):
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, 3:, 3] = 255
    pixels[0, 0] = (200, 100, 0, 51)
    expected = np.zeros((4, 6, 3), np.uint8)
    expected[:, :3] = 255
    expected[0, 0] = (244, 224, 204)
    np.testing.assert_array_equal(read_image(_save(tmp_path / "a.png", pixels)), expected)
    palette = Image.fromarray(np.repeat([[0, 0, 0, 1, 1, 1]], 4, axis=0).astype(np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 0, 0, 0])
    palette.save(tmp_path / "b.png", transparency=0)
    expected[0, 0] = 255
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), expected)


@pytest.mark.parametrize("name", ["a.jpg", "a.tiff"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1), (9, 0)])
def test_exif_orientation(tmp_path, orientation, turns, name):
    pixels = numbered_frames(1)[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / name, pixels, exif=exif, quality=95)
    shown = np.rot90(pixels, turns)
    image = read_image(path)
    assert probe_image(path) == (image.shape[1], image.shape[0]) == (shown.shape[1], shown.shape[0])
    assert np.abs(image.astype(int) - shown).mean() < 3
