"""Images that Pillow does not read by itself, and animated images."""

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media.decode import probe_video, read_waveform
from omnivinci_jax.media.kinds import media_kind
from omnivinci_jax.media.stills import probe_image, read_image
from tests.media.files import numbered_frames, read_frames, write_picture, write_video

_COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def _write_exr(path, linear):
    pix_fmt = "gbrapf32le" if linear.shape[-1] == 4 else "gbrpf32le"
    return write_picture(path, np.ascontiguousarray(linear, np.float32), "exr", pix_fmt)


@pytest.fixture
def animation(tmp_path):
    def write(name, seconds=(0.5, 0.25, 1.0), **options):
        pages = [Image.new("RGB", (64, 48), colour) for colour in _COLOURS]
        milliseconds = [round(1000 * second) for second in seconds]
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], duration=milliseconds, loop=0, **options)
        return tmp_path / name

    return write


def test_photos_of_phones(tmp_path):
    pixels = numbered_frames(6, 96, 128)[5]
    pixels[:20, 100:] = (200, 40, 40)
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, quality=95, chroma=444)
    assert (media_kind(path), probe_image(path)) == ("image", (128, 96))
    assert np.abs(read_image(path).astype(int) - pixels).mean() < 3
    # Cut into tiles, and turned by HEIF itself, which EXIF repeats.
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "b.heic"
    pillow_heif.options.GRID_TILE_SIZE = 64
    try:
        photo = Image.fromarray(pixels)
        photo.info["exif"] = exif.tobytes()
        photo.save(path, quality=95, chroma=444)
    finally:
        pillow_heif.options.GRID_TILE_SIZE = 0
    turned = np.rot90(pixels, -1)
    assert probe_image(path) == (96, 128)
    assert np.abs(read_image(path).astype(int) - turned).mean() < 3


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.hdr", "hdr", "gbrpf32le"), ("a.pfm", "pfm", "gbrpf32be")])
def test_radiance_and_float_maps_are_linear_light(tmp_path, name, codec, pix_fmt):
    linear = np.zeros((32, 40, 3), np.float32)
    linear[:, :20] = (1.0, 0.0, 0.2140411)  # half of sRGB
    path = write_picture(tmp_path / name, linear, codec, pix_fmt)
    assert (media_kind(path), probe_image(path)) == ("image", (40, 32))
    np.testing.assert_allclose(read_image(path)[5, [5, 30]], [(255, 0, 128), (0, 0, 0)], atol=1)


def test_exr_is_linear_light(tmp_path):
    linear = np.zeros((32, 40, 3))
    linear[:, :10] = (1.0, 0.0, 0.0)
    linear[:, 10:20] = 0.2140411  # half of sRGB
    linear[:, 20:30] = 7.0  # brighter than white
    path = _write_exr(tmp_path / "a.exr", linear)
    assert (media_kind(path), probe_image(path)) == ("image", (40, 32))
    pixels = read_image(path)[5, [5, 15, 25, 35]]
    np.testing.assert_allclose(pixels, [(255, 0, 0), (128, 128, 128), (255, 255, 255), (0, 0, 0)], atol=1)
    linear = np.zeros((32, 40, 4))
    linear[:, :20, 1] = linear[:, :20, 3] = 1.0
    assert read_image(_write_exr(tmp_path / "b.exr", linear))[5, [5, 30]].tolist() == [[0, 255, 0], [255, 255, 255]]
    linear[3, 3] = np.nan
    with pytest.raises(MediaError, match="not finite"):
        read_image(_write_exr(tmp_path / "c.exr", linear))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.dpx", "dpx", "gbrp10be"), ("a.jls", "jpegls", "rgb24"), ("a.xwd", "xwd", "rgb24")],
)
def test_images_that_only_ffmpeg_knows(tmp_path, name, codec, pix_fmt):
    pixels = numbered_frames(6)[5]
    path = write_picture(tmp_path / name, pixels, codec, pix_fmt)
    assert (media_kind(path), probe_image(path)) == ("image", (64, 48))
    assert np.abs(read_image(path).astype(int) - pixels).mean() < 2
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(MediaError):
        read_image(path)


def test_half_an_exr_is_cut_off(tmp_path):
    path = _write_exr(tmp_path / "a.exr", np.random.default_rng(0).uniform(size=(32, 40, 3)))
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) * 6 // 10):
        path.write_bytes(whole[:size])
        for read in (read_image, probe_image):
            with pytest.raises(MediaError, match=r"a\.exr: is cut off"):
                read(path)


@pytest.mark.parametrize(
    ("name", "options"), [("a.webp", {"lossless": True}), ("a.avif", {"quality": 95}), ("a.png", {}), ("a.gif", {})]
)
def test_animations_are_videos(animation, name, options):
    path = animation(name, **options)
    assert media_kind(path) == "video"
    info = probe_video(path)
    assert (info.width, info.height, info.audio_seconds) == (64, 48, 0.0)
    np.testing.assert_allclose(info.frame_times, [0.0, 0.5, 0.75], atol=1e-6)
    assert info.duration == pytest.approx(1.75)
    for indices in ([0, 1, 2], [1], [2, 0]):
        shown = read_frames(path, indices)[:, 20, 20].astype(int)
        assert np.abs(shown - [_COLOURS[index] for index in indices]).max() < 12
    for read in (read_image, probe_image):
        with pytest.raises(MediaError, match=r"is an animation of 3 frames; give it as a video"):
            read(path)
    with pytest.raises(MediaError):
        read_waveform(path)
    with pytest.raises(MediaError, match="there is no frame 3"):
        read_frames(path, [3])


def test_frames_without_a_duration_last_a_tenth_of_a_second(animation):
    info = probe_video(animation("a.webp", seconds=(0, 0.25, 0)))
    np.testing.assert_allclose(info.frame_times, [0.0, 0.1, 0.35])
    assert info.duration == pytest.approx(0.45)


def test_transparent_frames_are_on_white(tmp_path):
    clear, red = Image.new("RGBA", (64, 48)), Image.new("RGBA", (64, 48), (255, 0, 0, 255))
    for name in ("a.webp", "a.png"):
        clear.save(tmp_path / name, save_all=True, append_images=[red], duration=200, lossless=True)
        assert read_frames(tmp_path / name, [0, 1])[:, 5, 5].tolist() == [[255, 255, 255], [255, 0, 0]]


def test_a_png_whose_first_picture_is_not_part_of_the_animation(tmp_path):
    pages = [Image.new("RGB", (64, 48), colour) for colour in _COLOURS]
    path = tmp_path / "a.png"
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=500, default_image=True)
    assert probe_video(path).frame_times.tolist() == [0.0, 0.5]
    assert read_frames(path, [0, 1])[:, 5, 5].tolist() == [[0, 255, 0], [0, 0, 255]]


def test_still_images_stay_images(tmp_path):
    image = Image.fromarray(numbered_frames(6)[5])
    for name in ("a.webp", "a.avif", "a.png", "a.gif"):
        image.save(tmp_path / name)
        assert (media_kind(tmp_path / name), read_image(tmp_path / name).shape) == ("image", (48, 64, 3))


def test_videos_are_not_images(tmp_path):
    for name, codec in (("a.mp4", "libx264"), ("a.m2v", "mpeg2video")):
        path = write_video(tmp_path / name, numbered_frames(6), codec=codec)
        assert media_kind(path) == "video"
        for read in (read_image, probe_image):
            with pytest.raises(MediaError, match="is not an image; give a video or a sound as such"):
                read(path)
