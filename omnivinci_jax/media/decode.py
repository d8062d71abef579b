"""Decodes videos and sounds: frames with their true times, 16 kHz waveforms (paper, Appendix C.1).

Video and sound of a clip share one time origin, the start of whichever begins first, so they stay aligned. Data that is
not presented is left out: packets outside an edit list, encoder priming and padding. A file that cannot be read raises
a one-line `MediaError` that starts with its path.
"""

import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import soundfile
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from jaxtyping import Float32, Float64, Int, Int64, UInt8

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import complete, pcm, stills
from omnivinci_jax.media import container as ffmpeg
from omnivinci_jax.media.clock import Clock
from omnivinci_jax.media.container import PathLike

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


def probe_video(path: PathLike, track: int | None = None) -> VideoInfo:
    """Reads times and size of a video from its packets; decodes only the first frame, for its orientation.

    Args:
        path: of the video; its default video stream is read.
        track: sound track, counted from 1; None: the default one, if there is any.

    Raises:
        MediaError: the file is missing, empty, damaged, cut off, or has no video that can be decoded, or no such track.
    """
    with stills.open_animation(path) as animation:
        if animation is not None:
            if track is not None:
                raise ffmpeg.no_such_track(path, track, [])
            times, duration = stills.animation_times(animation)
            return VideoInfo(times, animation.width, animation.height, duration, audio_seconds=0.0)
    with ffmpeg.open_container(path) as container:
        video = ffmpeg.video_stream(container, path)
        has_sound = container.streams.audio or track is not None
        sound = ffmpeg.sound_stream(container, path, track) if has_sound else None
        width, height = video.width, video.height  # before decoding: the decoder changes them with the stream
        usual_duration = 1 / (video.average_rate * ffmpeg.time_base(video)) if video.average_rate else 0
        first, sound_end = None, ffmpeg.SoundEnd()
        stamps, last = array("q"), (-math.inf, 0)  # ten hours have a million frames
        for packet in ffmpeg.packets(container, [video, sound] if sound else [video], path):
            if packet.stream_index != video.index:
                sound_end.add(packet)
                continue
            if first is None:
                first = next(ffmpeg.decode_packets([packet], path, VideoFrame), None)
            if ffmpeg.is_presented(packet):
                stamps.append(ffmpeg.timestamp(packet))
                last = max(last, (stamps[-1], packet.duration or usual_duration))
        if first is None or not stamps:
            raise MediaError(f"{path}: no frame of the video stream can be decoded")
        zero = ffmpeg.clip_start(video, sound)
        if ffmpeg.is_quarter_turn(ffmpeg.display_matrix(first)):
            width, height = height, width
        return VideoInfo(
            frame_times=np.unique(np.array(stamps, np.int64)) * float(ffmpeg.time_base(video)) - zero,
            width=width,
            height=height,
            duration=float(sum(last) * ffmpeg.time_base(video)) - zero,
            audio_seconds=max(0.0, sound_end.seconds - zero),
        )


def probe_audio(path: PathLike, track: int | None = None) -> float:
    """Returns the seconds of sound from the start of the clip to the end of the last sample; 0.0 for an empty stream.

    Args:
        path: of the file.
        track: sound track, counted from 1; None: the default one.

    Raises:
        MediaError: the file is missing, empty, damaged, cut off, or has no sound that can be decoded, or no such track.
    """
    with pcm.open_whole(path, track) as sound_file:
        if sound_file is not None:
            return sound_file.frames / sound_file.samplerate
    return _probe_by_ffmpeg(path, track)


def _probe_by_ffmpeg(path: PathLike, track: int | None) -> float:
    with ffmpeg.open_container(path) as container:
        sound, sound_end = ffmpeg.sound_stream(container, path, track), ffmpeg.SoundEnd()
        for packet in ffmpeg.packets(container, [sound], path):
            sound_end.add(packet)
        seconds = max(0.0, sound_end.seconds - ffmpeg.clip_start(ffmpeg.default_video(container), sound))
        complete.check_samples(container, seconds, path)
        return seconds


def iterate_frames(path: PathLike, indices: Int[np.ndarray, " n"]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields the frames at these increasing indices (in presentation order, as in `probe_video`), RGB and upright.

    Decodes no further than needed, and seeks to the nearest keyframe where frames are far apart. Frames whose size
    differs from the first one (a stream may change) are scaled to it.

    Raises:
        MediaError: there is no such frame, or it cannot be decoded.
    """
    with stills.open_animation(path) as animation:
        if animation is not None:
            yield from stills.animation_frames(animation, indices, path)
            return
    stamps, keyframes, clock = _presentation_order(path)
    for index in indices:
        if not 0 <= index < len(stamps):
            raise MediaError(f"{path}: there is no frame {index}, it has {len(stamps)} frames")

    reformatter = VideoReformatter()  # shared: setting up a conversion costs more than converting a small frame
    with ffmpeg.open_container(path) as container:
        video = ffmpeg.video_stream(container, path)
        width, height = video.width, video.height  # before decoding: the decoder changes them with the stream
        in_order = container.format.name == "avi" or clock.guessed
        seekable = container.format.name.startswith(_SEEKABLE_FORMATS) and not (in_order or clock.restarted)
        frames = ffmpeg.decode_packets(ffmpeg.packets(container, [video], path), path, VideoFrame)
        if in_order:
            frames = _restore_times(frames, stamps)
        last = -1
        for index in indices.tolist():
            stamp, before = int(stamps[index]), int(np.searchsorted(keyframes, stamps[index], side="right"))
            keyframe = int(keyframes[before - 1] if before else stamps[0])
            if seekable and np.searchsorted(stamps, keyframe) - last > _SEEK_FRAMES:
                container.seek(keyframe, stream=video)
                frames = ffmpeg.decode_packets(ffmpeg.packets(container, [video], path), path, VideoFrame)
            # Damage spreads to all frames up to the next keyframe, but FFmpeg may mark only the first as corrupt.
            wanted_or_damaged = (
                frame
                for frame in frames
                if frame.pts == stamp or (frame.is_corrupt and ffmpeg.timestamp(frame) >= keyframe)
            )
            frame = next(wanted_or_damaged, None)
            if frame is None or frame.is_corrupt:
                second = stamp * float(ffmpeg.time_base(video))
                raise MediaError(f"{path}: is damaged: frame {index}, at {second:.2f} s, cannot be decoded")
            picture = reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
            yield ffmpeg.upright(picture, ffmpeg.display_matrix(frame))
            last = index


def iterate_sound(
    path: PathLike, sampling_rate: int = 16_000, track: int | None = None
) -> Iterator[Float32[np.ndarray, " t"]]:
    """Yields a file's sound as `read_waveform` returns it, in blocks; the last samples may be missing or silent.

    Raises:
        MediaError: as `read_waveform`.
    """
    with _open_sound(path, track) as sound:
        resampled = pcm.resample(pcm.finite(sound.blocks, sound.rate, path), sound.rate, sampling_rate)
        yield from pcm.finite(resampled, sampling_rate, path)


def read_waveform(
    path: PathLike, sampling_rate: int = 16_000, max_seconds: float = math.inf, track: int | None = None
) -> Float32[np.ndarray, " samples"]:
    """Reads a file's sound from the start of the clip: mean of its channels, resampled (soxr HQ) to `sampling_rate`.

    Returns round(`probe_audio(path)` · sampling_rate) samples; sound that starts after the video begins with silence.

    Args:
        path: of the file.
        sampling_rate: of the result, in Hz.
        max_seconds: decodes and returns at most these.
        track: sound track, counted from 1; None: the default one.

    Raises:
        MediaError: no sound stream, an empty one, one that cannot be decoded to its end, or whose samples are not
            finite; or no such track.
    """
    limit = max_seconds * sampling_rate
    with _open_sound(path, track) as sound:
        resampled = pcm.resample(pcm.finite(sound.blocks, sound.rate, path), sound.rate, sampling_rate)
        blocks = list(pcm.take_samples(pcm.finite(resampled, sampling_rate, path), limit))
        filled = sum(block.size for block in blocks)
        seconds = max_seconds if filled >= limit else sound.seconds()
    samples = round(seconds * sampling_rate)
    if not samples:
        raise MediaError(f"{path}: the sound has no samples")
    if filled < samples - ffmpeg.SOUND_GAP_SECONDS * sampling_rate:
        raise MediaError(f"{path}: is damaged: its sound ends at {filled / sampling_rate:.1f} s of {seconds:.1f} s")
    # A decoder may return a few samples more or fewer than the header says.
    blocks.append(np.zeros(max(0, samples - filled), np.float32))
    return np.concatenate(blocks)[:samples]


@dataclass(frozen=True)
class _Sound:
    """Mono blocks at the file's own rate; after the last one, `seconds` returns where the sound ends."""

    rate: int
    blocks: Iterator[Float32[np.ndarray, " t"]]
    seconds: Callable[[], float]


@contextmanager
def _open_sound(path: PathLike, track: int | None) -> Iterator[_Sound]:
    with pcm.open_whole(path, track) as sound_file:
        if sound_file is not None:
            seconds = sound_file.frames / sound_file.samplerate
            try:
                yield _Sound(sound_file.samplerate, pcm.mono_blocks(sound_file), lambda: seconds)
            except soundfile.LibsndfileError as error:
                _probe_by_ffmpeg(path, track)  # knows whether, and where, the file is cut off
                reason = error.error_string.rstrip(".")
                raise MediaError(f"{path}: is damaged: the sound cannot be decoded ({reason})") from error
            return
    with ffmpeg.open_container(path) as container:
        sound, sound_end = ffmpeg.sound_stream(container, path, track), ffmpeg.SoundEnd()
        zero, rate = ffmpeg.clip_start(ffmpeg.default_video(container), sound), sound.sample_rate
        frames = ffmpeg.decode_packets(sound_end.follow(ffmpeg.packets(container, [sound], path)), path, AudioFrame)

        def seconds_of_packets() -> float:
            seconds = max(0.0, sound_end.seconds - zero)
            complete.check_samples(container, seconds, path)
            return seconds

        try:
            yield _Sound(rate, ffmpeg.align_sound(frames, zero, rate, path), seconds_of_packets)
        except MediaError:
            _probe_by_ffmpeg(path, track)  # knows whether, and where, the file is cut off
            raise


def _presentation_order(
    path: PathLike,
) -> tuple[Int64[np.ndarray, " frames"], Int64[np.ndarray, " keyframes"], Clock]:
    """Returns sorted timestamps of all frames and of the keyframes, in the video stream's time base, and its clock."""
    clock, stamps, keyframes = Clock(os.fspath(path)), array("q"), array("q")
    with ffmpeg.open_container(path) as container:
        video = ffmpeg.video_stream(container, path)
        for packet in filter(ffmpeg.is_presented, ffmpeg.packets(container, [video], path, clock)):
            stamps.append(ffmpeg.timestamp(packet))
            if packet.is_keyframe:
                keyframes.append(stamps[-1])
    return np.unique(np.array(stamps, np.int64)), np.unique(np.array(keyframes, np.int64)), clock


def _restore_times(frames: Iterable[VideoFrame], stamps: Int64[np.ndarray, " n"]) -> Iterator[VideoFrame]:
    """Assigns times to frames in order: AVI and raw streams store none, and guesses are right only as a set."""
    for frame, stamp in zip(frames, stamps, strict=False):
        frame.pts = int(stamp)
        yield frame
