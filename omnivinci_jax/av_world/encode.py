"""Encodes arrays as media files with PyAV: fast, single-threaded, and byte for byte reproducible."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.audio import AudioStream
from av.codec.context import Flags
from av.container import OutputContainer
from av.packet import Packet
from av.video import VideoStream
from jaxtyping import Float, UInt8

from omnivinci_jax.paths import atomic_file


@dataclass(frozen=True)
class Codecs:
    """Codecs of a file format."""

    video: str | None
    audio: str
    sample_format: str
    video_options: tuple[tuple[str, str], ...] = ()
    audio_options: tuple[tuple[str, str], ...] = ()


FORMATS = {
    "mp4": Codecs("libx264", "aac", "fltp", (("preset", "ultrafast"), ("crf", "23")), (("aac_coder", "fast"),)),
    "webm": Codecs("libvpx-vp9", "libopus", "flt", (("deadline", "realtime"), ("cpu-used", "8"), ("crf", "32"))),
    "wav": Codecs(None, "pcm_s16le", "s16"),
    "flac": Codecs(None, "flac", "s16"),
    "ogg": Codecs(None, "libopus", "flt"),  # soundfile's own Vorbis writer draws a new serial number each time
}

_LAYOUTS = {1: "mono", 2: "stereo"}


def write_media(
    path: Path,
    frames: UInt8[np.ndarray, "frames height width 3"] | None,
    frame_rate: int,
    waveform: Float[np.ndarray, "channels samples"] | None,
    sample_rate: int,
) -> None:
    """Writes frames, sound (1 or 2 channels, within ±1) or both; the path's suffix names the format.

    The file appears only once it is complete.
    """
    codecs = FORMATS[path.suffix[1:]]
    bitexact = {"fflags": "+bitexact"}
    with atomic_file(path) as part, av.open(part, "w", format=path.suffix[1:], container_options=bitexact) as container:
        encoded: list[Iterator[Packet]] = []  # both streams are added before the first packet is written
        if frames is not None:
            encoded.append(_encoded_frames(_add_video(container, codecs, frames, frame_rate), frames, frame_rate))
        if waveform is not None:
            audio = _add_audio(container, codecs, len(waveform), sample_rate)
            encoded.append(_encoded_sound(audio, waveform, sample_rate))
        for packet in chain(*encoded):
            container.mux(packet)


def _add_video(
    container: OutputContainer, codecs: Codecs, frames: UInt8[np.ndarray, "frames height width 3"], frame_rate: int
) -> VideoStream:
    assert codecs.video is not None
    stream = container.add_stream(codecs.video, rate=frame_rate, options=dict(codecs.video_options))
    assert isinstance(stream, VideoStream)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= Flags.bitexact
    return stream


def _add_audio(container: OutputContainer, codecs: Codecs, channels: int, sample_rate: int) -> AudioStream:
    layout = _LAYOUTS[channels]
    options = dict(codecs.audio_options)
    stream = container.add_stream(
        codecs.audio, rate=sample_rate, layout=layout, format=codecs.sample_format, options=options
    )
    assert isinstance(stream, AudioStream)
    stream.bit_rate = 32_000 * channels
    stream.codec_context.flags |= Flags.bitexact
    return stream


def _encoded_frames(
    stream: VideoStream, frames: UInt8[np.ndarray, "frames height width 3"], frame_rate: int
) -> Iterator[Packet]:
    for number, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, frame_rate)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _encoded_sound(
    stream: AudioStream, waveform: Float[np.ndarray, "channels samples"], sample_rate: int
) -> Iterator[Packet]:
    planes = np.ascontiguousarray(waveform.clip(-1, 1), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=_LAYOUTS[len(planes)])
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    yield from stream.encode(frame)
    yield from stream.encode(None)
