"""Decodes media files: video frames with their true times, 16 kHz waveforms, images (paper, Appendix C.1).

Video and sound of a clip share one time origin, the start of whichever begins first, so they stay aligned. Data that is
not presented is left out: packets outside an edit list, encoder priming and padding. A file that cannot be read raises
a one-line `MediaError` that starts with its path.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from jaxtyping import Float32, Float64, Int, UInt8
from PIL import ExifTags, Image, ImageOps

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import container as ffmpeg
from omnivinci_jax.media.container import PathLike

# libsndfile reads these in large blocks; everything else goes through FFmpeg.
_SOUNDFILE_SUFFIXES = {".wav", ".flac", ".ogg"}
# Only these containers have an index that seeks to exactly the requested keyframe.
_SEEKABLE_FORMATS = ("mov,mp4", "matroska")
# With fewer frames to skip, decoding them costs less than a seek, which empties the decoder's pipeline.
_SEEK_FRAMES = 8


@dataclass(frozen=True)
class VideoInfo:
    """Times and size of a video; all times are seconds from the start of the clip.

    Attributes:
        frame_times: when each frame appears, sorted.
        width: in pixels, as displayed (rotation applied; pixels are assumed square).
        height: in pixels, as displayed.
        duration: the end of the last frame.
        audio_seconds: the end of the sound; 0.0 if there is no sound stream, or an empty one.
    """

    frame_times: Float64[np.ndarray, " frames"]
    width: int
    height: int
    duration: float
    audio_seconds: float


def probe_video(path: PathLike) -> VideoInfo:
    """Reads times and size of a video from its packets; decodes only the first frame, for its orientation.

    Raises:
        MediaError: the file is missing, empty, damaged, cut off, or has no video that can be decoded.
    """
    with ffmpeg.open_container(path) as container:
        video = ffmpeg.video_stream(container, path)
        sound = ffmpeg.sound_stream(container, path) if container.streams.audio else None
        width, height = video.width, video.height  # before decoding: the decoder changes them with the stream
        usual_duration = 1 / (video.average_rate * ffmpeg.time_base(video)) if video.average_rate else 0
        first, frames, sound_end = None, [], ffmpeg.SoundEnd()
        for packet in ffmpeg.packets(container, [video, sound] if sound else [video], path):
            if packet.stream_index != video.index:
                sound_end.add(packet)
                continue
            if first is None:
                first = next(ffmpeg.decode_packets([packet], path, VideoFrame), None)
            if ffmpeg.is_presented(packet):
                frames.append((ffmpeg.timestamp(packet), packet.duration or usual_duration))
        if first is None:
            raise MediaError(f"{path}: no frame of the video stream can be decoded")
        zero = ffmpeg.clip_start(video, sound)
        if ffmpeg.is_quarter_turn(ffmpeg.display_matrix(first)):
            width, height = height, width
        return VideoInfo(
            frame_times=np.unique([stamp for stamp, _ in frames]) * float(ffmpeg.time_base(video)) - zero,
            width=width,
            height=height,
            duration=float(sum(max(frames)) * ffmpeg.time_base(video)) - zero,
            audio_seconds=max(0.0, sound_end.seconds - zero),
        )


def probe_audio(path: PathLike) -> float:
    """Returns the seconds of sound from the start of the clip to the end of the last sample; 0.0 for an empty stream.

    Raises:
        MediaError: the file is missing, empty, damaged, cut off, or has no sound that can be decoded.
    """
    if _soundfile_reads(path):
        with _open_sound(path) as sound_file:
            return sound_file.frames / sound_file.samplerate
    with ffmpeg.open_container(path) as container:
        sound, sound_end = ffmpeg.sound_stream(container, path), ffmpeg.SoundEnd()
        for packet in ffmpeg.packets(container, [sound], path):
            sound_end.add(packet)
        return max(0.0, sound_end.seconds - ffmpeg.clip_start(ffmpeg.first_video(container), sound))


def iterate_frames(path: PathLike, indices: Int[np.ndarray, " n"]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields the frames at these increasing indices (in presentation order, as in `probe_video`), RGB and upright.

    Decodes no further than needed, and seeks to the nearest keyframe where frames are far apart. Frames whose size
    differs from the first one (a stream may change) are scaled to it.

    Raises:
        MediaError: there is no such frame, or it cannot be decoded.
    """
    stamps, keyframes = _presentation_order(path)
    for index in indices:
        if not 0 <= index < len(stamps):
            raise MediaError(f"{path}: there is no frame {index}, it has {len(stamps)} frames")

    reformatter = VideoReformatter()  # shared: setting up a conversion costs more than converting a small frame
    with ffmpeg.open_container(path) as container:
        video = ffmpeg.video_stream(container, path)
        width, height = video.width, video.height  # before decoding: the decoder changes them with the stream
        seekable = container.format.name.startswith(_SEEKABLE_FORMATS)
        frames = ffmpeg.decode_packets(ffmpeg.packets(container, [video], path), path, VideoFrame)
        if container.format.name == "avi":
            frames = _restore_avi_times(frames, stamps)
        last = -1
        for index in indices.tolist():
            before = bisect_right(keyframes, stamps[index])
            keyframe = keyframes[before - 1] if before else stamps[0]
            if seekable and bisect_left(stamps, keyframe) - last > _SEEK_FRAMES:
                container.seek(keyframe, stream=video)
                frames = ffmpeg.decode_packets(ffmpeg.packets(container, [video], path), path, VideoFrame)
            # Damage spreads to all frames up to the next keyframe, but FFmpeg may mark only the first as corrupt.
            wanted_or_damaged = (
                frame
                for frame in frames
                if frame.pts == stamps[index] or (frame.is_corrupt and ffmpeg.timestamp(frame) >= keyframe)
            )
            frame = next(wanted_or_damaged, None)
            if frame is None or frame.is_corrupt:
                second = stamps[index] * float(ffmpeg.time_base(video))
                raise MediaError(f"{path}: is damaged: frame {index}, at {second:.2f} s, cannot be decoded")
            picture = reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
            yield ffmpeg.upright(picture, ffmpeg.display_matrix(frame))
            last = index


def read_waveform(
    path: PathLike, sampling_rate: int = 16_000, max_seconds: float = math.inf
) -> Float32[np.ndarray, " samples"]:
    """Reads a file's sound from the start of the clip: mean of its channels, resampled (soxr HQ) to `sampling_rate`.

    Returns round(`probe_audio(path)` · sampling_rate) samples; sound that starts after the video begins with silence.
    Decodes and returns at most `max_seconds`.

    Raises:
        MediaError: no sound stream, an empty one, or one that cannot be decoded to its end.
    """
    if _soundfile_reads(path):
        with _open_sound(path) as sound_file:
            seconds, rate = sound_file.frames / sound_file.samplerate, sound_file.samplerate
            channels = sound_file.blocks(2**16, dtype="float32", always_2d=True)
            mono = (block.mean(axis=1) for block in channels)
            blocks = list(_take_samples(resample(mono, rate, sampling_rate), max_seconds * sampling_rate))
    else:
        with ffmpeg.open_container(path) as container:
            sound, sound_end = ffmpeg.sound_stream(container, path), ffmpeg.SoundEnd()
            zero, rate = ffmpeg.clip_start(ffmpeg.first_video(container), sound), sound.sample_rate
            frames = ffmpeg.decode_packets(sound_end.follow(ffmpeg.packets(container, [sound], path)), path, AudioFrame)
            mono = ffmpeg.align_sound(frames, zero, rate, path)
            blocks = list(_take_samples(resample(mono, rate, sampling_rate), max_seconds * sampling_rate))
            seconds = max(0.0, sound_end.seconds - zero)
    if sum(block.size for block in blocks) >= max_seconds * sampling_rate:
        seconds = max_seconds
    waveform = np.zeros(round(seconds * sampling_rate), np.float32)
    if not waveform.size:
        raise MediaError(f"{path}: the sound has no samples")
    filled = 0
    for block in blocks:
        block = block[: waveform.size - filled]  # a decoder may add padding after the end
        waveform[filled : filled + block.size] = block
        filled += block.size
    if filled < waveform.size - ffmpeg.SOUND_GAP_SECONDS * sampling_rate:
        raise MediaError(f"{path}: is damaged: its sound ends at {filled / sampling_rate:.1f} s of {seconds:.1f} s")
    return waveform


def probe_image(path: PathLike) -> tuple[int, int]:
    """Reads (width, height) of an image as displayed (EXIF orientation), from its header.

    Raises:
        MediaError: the file is missing, or not an image.
    """
    with _open_image(path) as image:
        if image.format == "TIFF":  # Pillow has already swapped width and height of some
            ImageOps.exif_transpose(image, in_place=True)  # decodes only rotated images
            return image.size
        # Orientations 5 to 8 include a quarter turn.
        turned = image.getexif().get(ExifTags.Base.Orientation) in range(5, 9)
        width, height = image.size
        return (height, width) if turned else (width, height)


def read_image(path: PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Reads the first frame of an image, RGB and upright: transparency on white, 16-bit grey scaled to 8 bits.

    Raises:
        MediaError: the file is missing, damaged, above Pillow's decompression bomb limit, or has float pixels.
    """
    with _open_image(path) as stored:
        image = ImageOps.exif_transpose(stored)
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
def _open_image(path: PathLike) -> Iterator[Image.Image]:
    ffmpeg.check_file(path)
    try:
        with Image.open(path) as image:
            yield image
    except MediaError:
        raise
    except Image.UnidentifiedImageError as error:
        raise MediaError(f"{path}: is not an image that Pillow can read") from error
    except Exception as error:  # on damaged data Pillow raises nearly every kind of exception
        raise MediaError(f"{path}: the image cannot be decoded ({' '.join(str(error).split())})") from error


def _presentation_order(path: PathLike) -> tuple[list[int], list[int]]:
    """Returns sorted timestamps of all frames and of the keyframes, in the video stream's time base."""
    with ffmpeg.open_container(path) as container:
        video = ffmpeg.video_stream(container, path)
        frames = filter(ffmpeg.is_presented, ffmpeg.packets(container, [video], path))
        is_keyframe = {ffmpeg.timestamp(packet): packet.is_keyframe for packet in frames}
    stamps = sorted(is_keyframe)
    return stamps, [stamp for stamp in stamps if is_keyframe[stamp]]


def _restore_avi_times(frames: Iterable[VideoFrame], stamps: list[int]) -> Iterator[VideoFrame]:
    """Assigns times to frames in order: AVI stores no times, and FFmpeg's guesses are right only as a set."""
    for frame, frame.pts in zip(frames, stamps, strict=False):
        yield frame


def _soundfile_reads(path: PathLike) -> bool:
    if Path(path).suffix.lower() not in _SOUNDFILE_SUFFIXES:
        return False
    try:
        with _open_sound(path):
            return True
    except MediaError:  # the suffix may be wrong: let FFmpeg read the file or report the error
        return False


@contextmanager
def _open_sound(path: PathLike) -> Iterator[soundfile.SoundFile]:
    ffmpeg.check_file(path)
    try:
        with soundfile.SoundFile(path) as sound_file:
            yield sound_file
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{path}: the sound cannot be decoded ({error.error_string.rstrip('.')})") from error


def _take_samples(blocks: Iterable[Float32[np.ndarray, " t"]], samples: float) -> Iterator[Float32[np.ndarray, " t"]]:
    """Yields blocks until they hold `samples` samples."""
    for block in blocks:
        yield block
        samples -= block.size
        if samples <= 0:
            return


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
