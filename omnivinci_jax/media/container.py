"""PyAV helpers for `decode.py`: streams, presented packets, upright frames, aligned sound."""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
import av.error
import numpy as np
from av.audio import AudioStream
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer
from av.stream import Discard, Disposition, Stream
from av.video import VideoStream
from av.video.frame import VideoFrame
from jaxtyping import Float32, Int, UInt8

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media.clock import Clock, Frame, ticks, with_times
from omnivinci_jax.media.complete import PLAIN_SAMPLES, check_complete

PathLike = str | os.PathLike[str]

# Containers round timestamps (Matroska: to 1 ms); only a larger jump between audio timestamps is a real gap.
SOUND_GAP_SECONDS = 0.05
# Pillow's limit for one image, too: damaged headers may ask for gigabytes of memory.
MAX_PIXELS = 2 * 89_478_485
# FFmpeg draws texts, and opens the files that playlists name.
_NOT_MEDIA = {"tty", "hls", "dash", "concat"}
# Outside these, a header is damaged.
SAMPLING_RATES = range(1_000, 1_000_001)
_MP3_TAGS = (b"ID3", b"TAG", b"APE")
_SILENCE = 2**16
_JOINT_PACKETS = 8


def check_file(path: PathLike) -> None:
    """Raises MediaError unless the path is a non-empty file."""
    if not os.path.exists(path):
        raise MediaError(f"{path}: no such file")
    if os.path.isdir(path):
        raise MediaError(f"{path}: is a directory, not a media file")
    if os.path.getsize(path) == 0:
        raise MediaError(f"{path}: is empty (0 bytes)")


@contextmanager
def open_container(path: PathLike) -> Iterator[InputContainer]:
    """Opens a container; FFmpeg errors, including those in the body of the `with`, become MediaError."""
    check_file(path)
    try:
        # "file:" keeps FFmpeg from reading "talk: part 1.mp4" as a protocol; tags may be in any encoding.
        with av.open(f"file:{os.fspath(path)}", metadata_errors="ignore") as container:
            if container.format.name in _NOT_MEDIA:
                raise MediaError(f"{path}: is a text or a playlist, not a media file")
            check_complete(container, os.fspath(path))
            yield container
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise MediaError(f"{path}: is cut off, damaged, or not a media file that FFmpeg can read") from error
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: FFmpeg cannot read it ({error.strerror})") from error
    except OverflowError as error:
        raise MediaError(f"{path}: is damaged: it has times beyond all clocks") from error


def time_base(stream: Stream) -> Fraction:
    """Returns the seconds per unit of a stream's timestamps."""
    assert stream.time_base is not None  # every demuxer sets it
    return stream.time_base


def default_video(container: InputContainer) -> VideoStream | None:
    """Returns the default video stream that is not album art, or else the first; None if there is none."""
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return next((s for s in videos if s.disposition & Disposition.default), videos[0] if videos else None)


def video_stream(container: InputContainer, path: PathLike) -> VideoStream:
    """Returns the default video stream; raises MediaError if there is none, or it cannot be decoded."""
    video = default_video(container)
    if video is None:
        raise MediaError(f"{path}: has no video stream")
    _check_codec(video, path)
    if video.width * video.height > MAX_PIXELS:
        raise MediaError(f"{path}: its frames of {video.width} x {video.height} pixels are too large; scale it down")
    # The loader already reads files in parallel; more threads per file were slower, on small frames and on 720p.
    video.codec_context.thread_count = 1
    video.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change in the stream
    return video


def sound_stream(container: InputContainer, path: PathLike, track: int | None = None) -> AudioStream:
    """Returns a sound stream: a track, counted from 1, or else the default one, or else the first.

    Raises:
        MediaError: there is no such stream, or it cannot be decoded.
    """
    streams = container.streams.audio
    if not streams:
        raise MediaError(f"{path}: has no sound stream")
    if track is None:
        sound = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    elif 1 <= track <= len(streams):
        sound = streams[track - 1]
    else:
        raise no_such_track(path, track, [_describe(s) for s in streams])
    _check_codec(sound, path)
    if sound.sample_rate not in SAMPLING_RATES:
        raise MediaError(f"{path}: is damaged: its sampling rate would be {sound.sample_rate} Hz")
    return sound


def no_such_track(path: PathLike, track: int, described: list[str]) -> MediaError:
    """Returns the error about a sound track that is not in the file, with those that are."""
    listed = ", ".join(f"{index} ({text})" for index, text in enumerate(described, start=1))
    return MediaError(f"{path}: has no sound track {track}; it has {listed or 'no sound'}")


def _describe(sound: AudioStream) -> str:
    name = " ".join(filter(None, (sound.metadata.get("language"), sound.metadata.get("title"))))
    codec = sound.codec_context.name if sound.codec_context else "unknown codec"
    default = "default" if sound.disposition & Disposition.default else ""
    return ", ".join(filter(None, (" ".join(name.split())[:40], codec, default)))


def _check_codec(stream: Stream, path: PathLike) -> None:
    if stream.codec_context is None:
        raise MediaError(f"{path}: the codec of its {stream.type} stream is not supported; re-encode it as mp4 or webm")


def clip_start(*streams: Stream | None) -> float:
    """Returns the clip's start in container time (s): the earliest stream start (FFmpeg excludes encoder priming)."""
    return min((s.start_time * float(time_base(s)) for s in streams if s and s.start_time is not None), default=0.0)


def packets(
    container: InputContainer, streams: list[Stream], path: PathLike, clock: Clock | None = None
) -> Iterator[Packet]:
    """Yields packets of the given streams in decoding order, then an empty one per stream to flush its decoder.

    `clock` sets their times; give one to know afterwards what it found.
    """
    clock = clock or Clock(os.fspath(path))
    clock.jumps = bool(container.format.flags & Flags.ts_discont.value)
    for stream in container.streams:
        stream.discard = Discard.default if stream in streams else Discard.all
    # FFmpeg marks a packet just before the joint of two .ts files as corrupt, though nothing is missing there.
    doubtful: dict[int, list[Packet]] = {}
    plain_samples, mp3 = container.format.name in PLAIN_SAMPLES, container.format.name == "mp3"
    for packet in container.demux(streams):
        if mp3 and bytes(packet)[:3] in _MP3_TAGS:  # of the second of two files that were joined
            continue
        if not packet.size:  # the end of the file
            for held in doubtful.values():
                raise _corrupt(held[0], path)
            yield packet
            continue
        restarts = clock.set_time(packet)
        held = doubtful.pop(packet.stream_index, [])
        if restarts or plain_samples or not (held or packet.is_corrupt):
            yield from (*held, packet)
        elif len(held) == _JOINT_PACKETS:
            raise _corrupt(held[0], path)
        else:
            doubtful[packet.stream_index] = [*held, packet]


def _corrupt(packet: Packet, path: PathLike) -> MediaError:
    return MediaError(f"{path}: is damaged or cut off at {_second(packet)}")


def is_presented(packet: Packet) -> bool:
    """Returns whether a packet is shown or played: neither a flush nor outside the edit list (decoded, never shown)."""
    return packet.size > 0 and not packet.is_discard


def timestamp(packet: Packet | VideoFrame) -> int:
    """Returns the presentation time of a packet or frame, in units of its stream's time base."""
    assert packet.pts is not None  # `packets` and `decode_packets` set it
    return packet.pts


def decode_packets(some_packets: Iterable[Packet], path: PathLike, kind: type[Frame]) -> Iterator[Frame]:
    """Decodes packets of one stream to frames of `kind`, in presentation order.

    Raises:
        MediaError: a packet cannot be decoded; the message says at which second.
    """
    return with_times(_decode(some_packets, path, kind))


def _decode(some_packets: Iterable[Packet], path: PathLike, kind: type[Frame]) -> Iterator[Frame]:
    for packet in some_packets:
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            raise MediaError(
                f"{path}: is damaged: it cannot be decoded at {_second(packet)} ({error.strerror})"
            ) from error
        yield from (frame for frame in frames if isinstance(frame, kind))


def _second(packet: Packet) -> str:
    return "its end" if packet.pts is None else f"{float(packet.pts * packet.time_base):.1f} s"


class SoundEnd:
    """Tracks the packets of a sound stream; `seconds` is where its last sample ends, in container time."""

    def __init__(self):
        self.seconds = 0.0
        self._frame_seconds = 0.0

    def add(self, packet: Packet) -> None:
        """Accounts for the next packet."""
        if not is_presented(packet):
            return
        base = packet.time_base  # we multiply its parts: Fraction arithmetic is ten times slower
        seconds = ticks(packet) * base.numerator / base.denominator or self._frame_seconds
        self._frame_seconds = max(self._frame_seconds, seconds)
        if packet.has_sidedata("skip_samples"):
            # Padding at the end of the last frame. Only some containers subtract it from the packet's duration.
            padding = struct.unpack_from("<II", bytes(packet.get_sidedata("skip_samples")))[1]
            seconds = min(seconds, self._frame_seconds - padding / packet.stream.sample_rate)
        end = timestamp(packet) * base.numerator / base.denominator + seconds
        self.seconds = end if seconds < 0 else max(self.seconds, end)

    def follow(self, some_packets: Iterable[Packet]) -> Iterator[Packet]:
        """Yields the same packets after adding each."""
        for packet in some_packets:
            self.add(packet)
            yield packet


def align_sound(
    frames: Iterable[AudioFrame], zero: float, sampling_rate: int, path: PathLike
) -> Iterator[Float32[np.ndarray, " t"]]:
    """Yields contiguous mono blocks from second `zero`; silence fills a late start and gaps."""
    written = 0
    for frame in frames:
        if frame.sample_rate != sampling_rate:
            raise MediaError(f"{path}: its sampling rate changes at {frame.time:.1f} s; re-encode it at one rate")
        block = _mono(frame)
        assert frame.time is not None  # `decode_packets` sets it
        gap = round((frame.time - zero) * sampling_rate) - written
        if not written or abs(gap) > SOUND_GAP_SECONDS * sampling_rate:
            for start in range(0, gap, _SILENCE):  # in pieces: a damaged time may be days away
                yield np.zeros(min(_SILENCE, gap - start), np.float32)
            block = block[max(-gap, 0) :]
            written += max(gap, 0)
        written += block.size
        yield block


def _mono(frame: AudioFrame) -> Float32[np.ndarray, " t"]:
    samples = frame.to_ndarray()  # [channels, t], or interleaved in one row
    channels = samples.reshape(frame.layout.nb_channels, -1, order="C" if frame.format.is_planar else "F")
    with np.errstate(all="ignore"):  # `pcm.finite` reports what is not
        mean = channels.mean(axis=0, dtype=np.float64)
        if channels.dtype == np.uint8:
            mean = (mean - 128) / 128
        elif np.issubdtype(channels.dtype, np.integer):
            mean /= -float(np.iinfo(channels.dtype.str).min)
        return mean.astype(np.float32)


def display_matrix(frame: VideoFrame) -> Int[np.ndarray, "3 3"] | None:
    """Returns a frame's display matrix: x' = m00·x + m10·y, y' = m01·x + m11·y (y points down); None: as stored."""
    try:
        # `frame.side_data` would be a cycle of references, which keeps every picture until Python collects garbage.
        data = SideDataContainer(frame).get("DISPLAYMATRIX")  # pyright: ignore[reportCallIssue] (its stub is empty)
    except ValueError:  # PyAV fails if the frame has side data of a type it does not know; it still knows the rotation
        cosine, sine = np.cos(np.deg2rad(frame.rotation)), np.sin(np.deg2rad(frame.rotation))
        return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]).round().astype(int)
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def is_quarter_turn(matrix: Int[np.ndarray, "3 3"] | None) -> bool:
    """Returns whether the display matrix swaps width and height."""
    return matrix is not None and bool(abs(matrix[0, 0]) < abs(matrix[0, 1]))


def upright(picture: UInt8[np.ndarray, "h w 3"], matrix: Int[np.ndarray, "3 3"] | None) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Applies the quarter turns and flips of a display matrix."""
    if matrix is None:
        return picture
    if is_quarter_turn(matrix):
        picture, flip_x, flip_y = picture.swapaxes(0, 1), matrix[1, 0] < 0, matrix[0, 1] < 0
    else:
        flip_x, flip_y = matrix[0, 0] < 0, matrix[1, 1] < 0
    return picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
