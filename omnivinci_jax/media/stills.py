"""Images: read by Pillow, or by FFmpeg where Pillow cannot (EXR); and animated WebP, AVIF and PNG, read as videos."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pillow_heif
from av.video.frame import VideoFrame
from jaxtyping import Float32, Float64, Int, UInt8
from PIL import ExifTags, Image, ImageOps

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import container as ffmpeg
from omnivinci_jax.media.container import PathLike

pillow_heif.register_heif_opener()  # the photos of phones
# Other formats with several frames hold pages (TIFF) or previews (a camera's JPEG).
ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "AVIF")
_NOT_IMAGES = ("MPEG", "FLI")  # videos, whose first bytes Pillow knows
# Browsers show frames without a duration this long.
_DEFAULT_SECONDS = 0.1


def probe_image(path: PathLike) -> tuple[int, int]:
    """Reads (width, height) of an image as displayed (EXIF orientation), from its header.

    Raises:
        MediaError: the file is missing, not an image, or an animation.
    """
    with _open_image(path) as image:
        if image is None:
            height, width = _read_by_ffmpeg(path).shape[:2]
            return width, height
        if image.format == "TIFF":  # Pillow has already swapped width and height of some
            ImageOps.exif_transpose(image, in_place=True)  # decodes only rotated images
            return image.size
        # Orientations 5 to 8 include a quarter turn.
        turned = image.getexif().get(ExifTags.Base.Orientation) in range(5, 9)
        width, height = image.size
        return (height, width) if turned else (width, height)


def read_image(path: PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image, RGB and upright: transparency on white, 16-bit grey scaled to 8 bits, EXR from linear to sRGB.

    Raises:
        MediaError: the file is missing, damaged, an animation, above Pillow's decompression bomb limit, or a TIFF with
            float pixels.
    """
    with _open_image(path) as stored:
        return _read_by_ffmpeg(path) if stored is None else _rgb(ImageOps.exif_transpose(stored), path)


def _rgb(image: Image.Image, path: PathLike) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode == "F":
        raise MediaError(f"{path}: its pixels are floats of unknown range; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        # Pillow calls 16-bit grey "I;16" or "I", and clips it when it converts it to 8 bits.
        grey = (np.clip(np.asarray(image, np.int64), 0, 65_535) + 128) // 257
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


@contextmanager
def _open_image(path: PathLike) -> Iterator[Image.Image | None]:
    """Opens an image by Pillow; yields None if Pillow does not know its format."""
    with open_by_pillow(path) as image:
        if image is not None and is_animated(image):
            raise MediaError(
                f"{path}: is an animation of {_num_frames(image)} frames; give it as a video, or save one frame"
            )
        yield image


@contextmanager
def open_by_pillow(path: PathLike) -> Iterator[Image.Image | None]:
    """Opens an image, which may be animated; yields None if Pillow does not know its format.

    Raises:
        MediaError: the file is missing or empty, or the body of the `with` cannot decode it.
    """
    ffmpeg.check_file(path)
    try:
        with Image.open(path) as image:
            yield None if image.format in _NOT_IMAGES else image
            return
    except MediaError:
        raise
    except Image.UnidentifiedImageError:
        pass
    except Exception as error:  # on damaged data Pillow raises nearly every kind of exception
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MediaError(f"{path}: the image cannot be decoded ({reason})") from error
    yield None


def is_animated(image: Image.Image) -> bool:
    """Returns whether the frames of an image are shown one after the other."""
    return image.format in ANIMATED_FORMATS and _num_frames(image) > 1


def _num_frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1)


def _read_by_ffmpeg(path: PathLike) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with ffmpeg.open_container(path) as container:
            if not container.format.name.endswith("_pipe"):  # FFmpeg's readers of single images
                raise MediaError(f"{path}: is not an image; give a video or a sound as such")
            video = ffmpeg.video_stream(container, path)
            video.codec_context.options |= {"err_detect": "explode"}  # half a picture is not one
            frames = ffmpeg.decode_packets(ffmpeg.packets(container, [video], path), path, VideoFrame)
            frame = next(frames, None)
    except MediaError as error:
        if "can read" in str(error):
            raise MediaError(f"{path}: is not an image that Pillow or FFmpeg can read") from error
        raise
    if frame is None:
        raise MediaError(f"{path}: the image cannot be decoded")
    if "f16" in frame.format.name or "f32" in frame.format.name:
        return _srgb(frame, path)
    return frame.to_ndarray(format="rgb24")


def _srgb(frame: VideoFrame, path: PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Converts linear light, as in EXR with premultiplied transparency, to the sRGB of other images, on white."""
    linear: Float32[np.ndarray, "h w c"] = frame.to_ndarray(format="gbrapf32le")
    if not np.isfinite(linear).all():
        raise MediaError(f"{path}: holds pixels that are not finite; save it again, or with 8 bits per channel")
    light = np.clip(linear[..., :3] + (1 - np.clip(linear[..., 3:], 0, 1)), 0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)
    return np.round(curve * 255).astype(np.uint8)


@contextmanager
def open_animation(path: PathLike) -> Iterator[Image.Image | None]:
    """Opens an animated WebP, AVIF or PNG; yields None for all other files, whose frames FFmpeg reads."""
    ffmpeg.check_file(path)
    with open(path, "rb") as file:
        magic = file.read(12)
    if not (magic.startswith((b"\x89PNG", b"RIFF")) or magic[4:] in (b"ftypavis", b"ftypavif")):
        yield None
        return
    with open_by_pillow(path) as image:
        yield image if image is not None and is_animated(image) else None


def animation_times(image: Image.Image) -> tuple[Float64[np.ndarray, " frames"], float]:
    """Returns when each frame of an animation appears, and when the last one ends, in seconds; decodes all."""
    seconds = []
    for index in range(_hidden(image), _num_frames(image)):
        image.seek(index)
        image.load()
        milliseconds = float(image.info.get("duration") or 0)
        seconds.append(milliseconds / 1000 if milliseconds >= 10 else _DEFAULT_SECONDS)
    ends = np.cumsum(seconds)
    return ends - seconds, float(ends[-1])


def animation_frames(
    image: Image.Image, indices: Int[np.ndarray, " n"], path: PathLike
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields frames of an animation, RGB: transparency on white."""
    count = _num_frames(image) - _hidden(image)
    for index in indices.tolist():
        if not 0 <= index < count:
            raise MediaError(f"{path}: there is no frame {index}, it has {count} frames")
        image.seek(index + _hidden(image))
        yield _rgb(image.copy(), path)


def _hidden(image: Image.Image) -> int:
    """Returns 1 for a PNG whose first picture is only for programs without animation, else 0."""
    return int(getattr(image, "default_image", False))
