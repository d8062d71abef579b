"""Cuts videos without encoding them again: packets are copied, so a part begins at a keyframe."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import av
import av.error
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video import VideoStream

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import container as ffmpeg
from omnivinci_jax.media.clock import Clock
from omnivinci_jax.media.container import PathLike
from omnivinci_jax.paths import atomic_file

_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".webm": "webm"}
# Containers round times to a millisecond or so.
_ROUNDING_SECONDS = 0.002


def keyframe_times(path: PathLike) -> list[float]:
    """Returns the seconds of the keyframes from the start of the clip, in order; raises MediaError."""
    with ffmpeg.open_container(path) as container:
        video = ffmpeg.video_stream(container, path)
        zero, base = _start(container, video, path), float(ffmpeg.time_base(video))
        presented = filter(ffmpeg.is_presented, ffmpeg.packets(container, [video], path))
        return sorted(ffmpeg.timestamp(packet) * base - zero for packet in presented if packet.is_keyframe)


def spans(keyframes: Sequence[float], start: float, end: float, seconds: float) -> list[tuple[float, float]]:
    """Divides [start, end) into spans of about `seconds`, each beginning at the nearest keyframe.

    The last may be a quarter longer; where keyframes are far apart, others are longer too.
    """
    cuts = [start]
    while end - cuts[-1] > 1.25 * seconds:
        later = [time for time in keyframes if cuts[-1] + _ROUNDING_SECONDS < time < end - _ROUNDING_SECONDS]
        if not later:
            break
        cuts.append(min(later, key=lambda time: abs(time - cuts[-1] - seconds)))
    return list(pairwise([*cuts, end]))


def part_suffix(path: PathLike) -> str:
    """Returns the suffix of a part of a file: that of a format which takes its streams."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in _FORMATS else ".mkv"


def cut(
    path: PathLike, starts: Sequence[float], outs: Sequence[Path], end: float | None = None, sound: bool = True
) -> None:
    """Copies each part of a video, from a keyframe's time to the next start, into a file, in one pass over the video.

    Args:
        path: of the video.
        starts: of the parts, in seconds; increasing times of keyframes, see `keyframe_times`.
        outs: a file for each part, with the suffix that `part_suffix` gives; it appears once it is complete.
        end: of the last part; None: the end of the video.
        sound: whether to copy the sound too.

    Raises:
        MediaError: the file cannot be read, has frames without times, or streams that the format does not take.
    """
    clock = Clock(os.fspath(path))
    with ffmpeg.open_container(path) as container, ExitStack() as stack:
        video = ffmpeg.video_stream(container, path)
        heard = ffmpeg.sound_stream(container, path) if sound and container.streams.audio else None
        zero = _start(container, video, path)
        streams: list[Stream] = [video, heard] if heard else [video]
        parts = [_Part(out, start + zero, streams) for start, out in zip(starts, outs, strict=True)]
        stack.callback(lambda: [part.abandon() for part in parts])
        limit = float("inf") if end is None else end + zero - _ROUNDING_SECONDS
        # The part that each stream is in; a part is complete when all streams have left it.
        current = dict.fromkeys((stream.index for stream in streams), -1)
        for packet in ffmpeg.packets(container, streams, path, clock):
            if not packet.size:
                continue
            time, index = float(ffmpeg.timestamp(packet) * packet.time_base), current[packet.stream_index]
            if packet.stream_index != video.index or packet.is_keyframe:
                while index + 1 < len(parts) and time >= parts[index + 1].start - _ROUNDING_SECONDS:
                    index += 1
            if packet.stream_index != video.index and index < 0 and starts[0] <= 0:
                index = 0  # encoder priming lies before the first sample
            current[packet.stream_index] = index
            for complete in parts[: max(0, min(current.values()))]:
                complete.close()
            # Frames shown before a part's first keyframe but decoded after it need the part before.
            leading = packet.stream_index == video.index and time < parts[max(index, 0)].start - _ROUNDING_SECONDS
            if index < 0 or leading or time >= limit:
                continue
            try:
                parts[index].add(packet)
            except (av.error.FFmpegError, ValueError) as error:
                raise MediaError(
                    f"{path}: cannot be cut into {outs[index].suffix} files ({error}); convert it"
                ) from None
        if clock.guessed:
            raise MediaError(f"{path}: its frames have no times, so it cannot be cut; convert it to mp4")
        for part in parts:
            part.close()


class _Part:
    """A file for the packets of a part; opened by the first of them."""

    def __init__(self, out: Path, start: float, streams: list[Stream]):
        self.start, self._out, self._streams = start, out, streams
        self._files = ExitStack()
        self._container: OutputContainer | None = None
        self._copies: dict[int, Stream] = {}
        self._closed = False

    def add(self, packet: Packet) -> None:
        """Writes a packet; its times change."""
        if self._closed:
            return
        if self._container is None:
            file, name = self._files.enter_context(atomic_file(self._out)), _FORMATS.get(self._out.suffix, "matroska")
            options = {"fflags": "+bitexact"}  # Matroska's muxer would draw random numbers
            self._container = self._files.enter_context(av.open(str(file), "w", format=name, container_options=options))
            self._copies = {stream.index: self._container.add_stream_from_template(stream) for stream in self._streams}
        shift = round(self.start / float(packet.time_base))
        packet.pts = ffmpeg.timestamp(packet) - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        packet.stream = self._copies[packet.stream_index]
        self._container.mux(packet)

    def close(self) -> None:
        """Completes the file."""
        self._closed = True
        self._files.close()

    def abandon(self) -> None:
        """Deletes the file unless it is complete."""
        if not self._closed:
            self._files.__exit__(MediaError, MediaError("abandoned"), None)


def _start(container: InputContainer, video: VideoStream, path: PathLike) -> float:
    return ffmpeg.clip_start(video, ffmpeg.sound_stream(container, path) if container.streams.audio else None)
