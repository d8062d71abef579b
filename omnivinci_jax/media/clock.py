"""Times of packets and frames: those that a file leaves out, and a clock that starts again."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import av
from av.audio.frame import AudioFrame
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame

Frame = TypeVar("Frame", VideoFrame, AudioFrame)

# Muxers write small steps back; a larger one means that the file continues with another recording.
_RESTART_SECONDS = 0.25
# In formats of broadcasts, so does a long step forward of all streams (as for FFmpeg).
_JUMP_SECONDS = 10.0


@dataclass
class _Position:
    """Where one stream is, on its own clock: its last decoding time, the span of its last packet, and its part.

    `back` and `ahead` are the steps in decoding time that start a new part.
    """

    back: float
    ahead: float
    decoded: int | None = None
    start: int = 0
    end: int = 0
    duration: int = 0
    part: int = 0


class Clock:
    """Gives times to packets that have none, and continues times where the file's clock starts again.

    Recordings that were joined byte by byte (.ts, .vob, .ogg) each start at their own time. The first frame of a part
    follows the last of the part before, and all streams move by the same time, so they stay aligned.

    guessed: whether a packet had no time, so only the order of the frames is known.
    restarted: whether the clock started again.
    jumps: whether a long step forward may be a new start, as in MPEG-TS.
    """

    def __init__(self, path: str, jumps: bool = False):
        self.guessed = self.restarted = False
        self.jumps = jumps
        self._path = path
        self._positions: dict[int, _Position] = {}
        self._offsets: dict[int, list[Fraction]] | None = None

    def set_time(self, packet: Packet) -> bool:
        """Sets `pts` and `dts` of the next packet of its stream; returns whether the clock started again there."""
        position, turn = self._advance(packet)
        if turn and self._offsets is None:
            self._offsets, self.jumps = _offsets(self._path, self.jumps)
            if turn > 0 and not self.jumps:  # a picture that is shown for long
                turn, position.part = 0, 0
        if position.part and self._offsets is not None:
            offsets = self._offsets.get(packet.stream_index, [])
            self.restarted = True
            moved = round(offsets[min(position.part, len(offsets) - 1)] / packet.time_base) if offsets else 0
            packet.pts = position.start + moved
            packet.dts = None if packet.dts is None else packet.dts + moved
        return bool(turn)

    def _advance(self, packet: Packet) -> tuple[_Position, int]:
        """Returns where the stream is, and -1 or 1 if its clock started again at an earlier or later time, else 0."""
        position = self._positions.get(packet.stream_index)
        if position is None:
            position = self._positions[packet.stream_index] = _Position(
                _RESTART_SECONDS / packet.time_base, _JUMP_SECONDS / packet.time_base
            )
        start = packet.pts
        if start is None:
            start = packet.pts = position.end if packet.dts is None else packet.dts
            self.guessed = True
        # Frames that are stored out of order step back in `pts`, never in `dts`; only a keyframe can start a recording.
        time = packet.dts if packet.dts is not None or not packet.is_keyframe else start
        turn = 0
        if time is not None and position.decoded is not None:
            if time < position.decoded - position.back:
                turn = -1
            elif self.jumps and time > position.decoded + position.ahead:
                turn = 1
        position.decoded = packet.dts if packet.dts is not None or turn else position.decoded
        position.part += abs(turn)
        position.duration = ticks(packet) or position.duration
        position.start, position.end = start, start + position.duration
        return position, turn


def _offsets(path: str, jumps: bool) -> tuple[dict[int, list[Fraction]] | None, bool]:
    """Returns for each stream the seconds to add in each of its parts, and whether a step forward starts a part.

    None instead of the seconds: there is only one part.
    """
    spans = _spans(path, jumps)
    if jumps and len({len(parts) for parts in spans.values()}) > 1:
        jumps, spans = False, _spans(path, False)
    counts = {len(parts) for parts in spans.values()}
    if counts <= {1}:
        return None, jumps
    if len(counts) > 1:  # damage to the clock of one stream
        return {stream: _continue(parts) for stream, parts in spans.items()}, jumps
    whole_file = [
        (min(start for start, _ in part), max(end for _, end in part)) for part in zip(*spans.values(), strict=True)
    ]
    return dict.fromkeys(spans, _continue(whole_file)), jumps


def _spans(path: str, jumps: bool) -> dict[int, list[tuple[Fraction, Fraction]]]:
    """Returns for each stream the start and end of each of its parts, in seconds on the file's clock."""
    spans: dict[int, list[tuple[Fraction, Fraction]]] = {}
    with av.open(f"file:{path}", metadata_errors="ignore") as container:
        streams = [s for s in container.streams if s.type in ("audio", "video")]
        clock, streams = Clock(path, jumps), [s for s in streams if not s.disposition & Disposition.attached_pic]
        for packet in container.demux(streams):
            if not packet.size:
                continue
            position, _ = clock._advance(packet)
            parts = spans.setdefault(packet.stream_index, [])
            start, end = position.start * packet.time_base, position.end * packet.time_base
            if position.part == len(parts):
                parts.append((start, end))
            else:
                parts[-1] = (min(parts[-1][0], start), max(parts[-1][1], end))
    return spans


def _continue(parts: list[tuple[Fraction, Fraction]]) -> list[Fraction]:
    offsets = [Fraction(0)]
    for (_, end), (start, _) in itertools.pairwise(parts):
        offsets.append(offsets[-1] + end - start)
    return offsets


def ticks(packet: Packet) -> int:
    """Returns a packet's duration in units of its time base: negative if padding of the packet before is cut (Ogg)."""
    duration = packet.duration or 0
    return duration - 2**32 if 2**31 <= duration < 2**32 else duration


def with_times(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yields frames of one stream; a frame without a time follows the one before (the last of WMA has none)."""
    end = 0
    for frame in frames:
        if frame.pts is None:
            frame.pts = end
        end = frame.pts + _ticks(frame)
        yield frame


def _ticks(frame: VideoFrame | AudioFrame) -> int:
    if isinstance(frame, AudioFrame) and frame.sample_rate:
        return round(Fraction(frame.samples, frame.sample_rate) / (frame.time_base or 1))
    return frame.duration or 1
