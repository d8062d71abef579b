"""Arrays into media files with PyAV: quickly, one thread each, and byte for byte the same every time."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, UInt8

from omnivinci_jax.paths import atomic_file


@dataclass(frozen=True)
class Codecs:
    """What a kind of file is made of."""

    video: str | None
    audio: str
    sample_format: str
    video_options: tuple[tuple[str, str], ...] = ()


FORMATS = {
    "mp4": Codecs("libx264", "aac", "fltp", (("preset", "ultrafast"), ("crf", "23"))),
    "webm": Codecs("libvpx-vp9", "libopus", "flt", (("deadline", "realtime"), ("cpu-used", "8"), ("crf", "32"))),
    "wav": Codecs(None, "pcm_s16le", "s16"),
    "flac": Codecs(None, "flac", "s16"),
    "ogg": Codecs(None, "libopus", "flt"),  # soundfile's own Vorbis writer draws a new serial number each time
}


def write_media(
    path: Path,
    frames: UInt8[np.ndarray, "frames height width 3"] | None,
    frame_rate: int,
    waveform: Float[np.ndarray, "channels samples"] | None,
    sample_rate: int,
) -> None:
    """Writes pictures, sound (1 or 2 channels, within ±1) or both in the format that the path's ending names.

    The file appears only once it is complete.
    """
    codecs = FORMATS[path.suffix[1:]]
    bitexact = {"fflags": "+bitexact"}
    with atomic_file(path) as part, av.open(part, "w", format=path.suffix[1:], container_options=bitexact) as container:
        if frames is not None:
            video = container.add_stream(codecs.video, rate=frame_rate, options=dict(codecs.video_options))
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            video.codec_context.thread_count = 1
            video.codec_context.flags |= av.codec.context.Flags.bitexact
        if waveform is not None:
            layout = "mono" if len(waveform) == 1 else "stereo"
            audio = container.add_stream(codecs.audio, rate=sample_rate, layout=layout, format=codecs.sample_format)
            audio.bit_rate = 32_000 * len(waveform)
            audio.codec_context.flags |= av.codec.context.Flags.bitexact
        if frames is not None:
            for number, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, frame_rate)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if waveform is not None:
            planes = np.ascontiguousarray(waveform.clip(-1, 1), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
