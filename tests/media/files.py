"""Small media files with known content: frames carry their index as a barcode, a tone starts at a known second."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import Float32, UInt8

from omnivinci_jax.media.decode import iterate_frames

_BITS = 10


def numbered_frames(count: int, height: int = 48, width: int = 64) -> UInt8[np.ndarray, "n h w 3"]:
    """Makes grey frames: their index as black and white stripes in the lower half, a white upper left quarter."""
    frames = np.full((count, height, width, 3), 90, np.uint8)
    frames[:, : height // 2, : width // 2] = 255
    bits = np.arange(count)[:, None] >> np.arange(_BITS) & 1
    stripes = np.repeat(bits, width // _BITS, axis=1) * 255
    frames[:, height // 2 :, : stripes.shape[1]] = stripes[:, None, :, None]
    return frames


def frame_numbers(frames: UInt8[np.ndarray, "n h w 3"]) -> list[int]:
    """Reads the indices in `numbered_frames`, after any codec."""
    height, width = frames.shape[1:3]
    centres = (np.arange(_BITS) + 0.5) * (width // _BITS)
    grey = frames[:, 3 * height // 4, centres.astype(int)].mean(-1)
    return ((grey > 128) << np.arange(_BITS)).sum(1).tolist()


def tone(
    seconds: float, start: float = 0.0, sampling_rate: int = 16_000, hertz: float = 440.0
) -> Float32[np.ndarray, " t"]:
    """Returns silence up to second `start`, then a sine of amplitude 0.5."""
    times = np.arange(round(seconds * sampling_rate)) / sampling_rate
    return (0.5 * np.sin(2 * np.pi * hertz * times) * (times >= start)).astype(np.float32)


def onset(waveform: Float32[np.ndarray, " t"], sampling_rate: int = 16_000) -> float:
    """Returns the second at which a waveform first becomes loud."""
    return int(np.argmax(np.abs(waveform) > 0.2)) / sampling_rate


def write_video(
    path: Path,
    frames: UInt8[np.ndarray, "n h w 3"] | None,
    *,
    fps: float = 25.0,
    times: list[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    turn_clockwise: int = 0,
    mirror: bool = False,
    waveform: Float32[np.ndarray, " t"] | Float32[np.ndarray, "c t"] | None = None,
    sampling_rate: int = 16_000,
    audio_codec: str = "aac",
    audio_start: float = 0.0,
    audio_bit_rate: int = 0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Writes frames (None: no video stream) and a waveform (None: no sound stream); the suffix chooses the container.

    Args:
        path: of the file; returned.
        frames: RGB.
        fps: frame rate, unless `times` are given.
        times: second at which each frame is shown.
        codec: of the frames.
        pix_fmt: of the codec; odd sizes need one without chroma subsampling, or a codec that pads.
        codec_options: of the video encoder.
        turn_clockwise: rotation in the display matrix, in degrees.
        mirror: whether the display matrix also flips the rotated frame left to right.
        waveform: one channel, or one row per channel.
        sampling_rate: of the waveform, in Hz.
        audio_codec: of the waveform.
        audio_start: second at which the first sample is heard.
        audio_bit_rate: 0: the encoder's default.
        container_options: of the muxer.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        if frames is not None:
            rate = Fraction(fps).limit_denominator(1001)
            clock = 1 / rate if times is None else Fraction(1, 60_000)
            video = container.add_stream(codec, rate=rate, options=codec_options or {})
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = pix_fmt
            video.codec_context.time_base = clock
            if turn_clockwise or mirror:
                video.set_display_rotation(-turn_clockwise, hflip=mirror)
        if waveform is not None:
            channels = np.atleast_2d(waveform)
            layout = {1: "mono", 2: "stereo"}[len(channels)]
            audio = container.add_stream(audio_codec, rate=sampling_rate, layout=layout)
            if audio_bit_rate:
                audio.bit_rate = audio_bit_rate
        if frames is not None:
            times = [i / fps for i in range(len(frames))] if times is None else times
            for picture, time in zip(frames, times, strict=True):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = round(time / clock), clock
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if waveform is not None:
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels, np.float32), "fltp", layout)
            sound.sample_rate = sampling_rate
            sound.pts, sound.time_base = round(audio_start * sampling_rate), Fraction(1, sampling_rate)
            container.mux(audio.encode(sound))
            container.mux(audio.encode())
    return path


def write_picture(
    path: Path, picture: UInt8[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w c"], codec: str, pix_fmt: str
) -> Path:
    """Writes one picture by FFmpeg: RGB, or floats with or without transparency; the suffix chooses the format."""
    floats = "gbrapf32le" if picture.shape[-1] == 4 else "gbrpf32le"
    with av.open(str(path), "w", format="image2") as container:
        frame = av.VideoFrame.from_ndarray(picture, "rgb24" if picture.dtype == np.uint8 else floats)
        frame = frame.reformat(format=pix_fmt)
        stream = container.add_stream(codec, rate=1, width=frame.width, height=frame.height, pix_fmt=pix_fmt)
        frame.pts, frame.time_base = 0, Fraction(1)
        container.mux(stream.encode(frame) + stream.encode())
    return path


def join(out: Path, *parts: Path) -> Path:
    """Writes the bytes of several files one after the other."""
    out.write_bytes(b"".join(part.read_bytes() for part in parts))
    return out


def write_sound_tracks(
    path: Path, tracks: dict[str, Float32[np.ndarray, " t"]], default: str, codec: str = "pcm_s16le"
) -> Path:
    """Writes one 16 kHz sound track for each language."""
    with av.open(str(path), "w") as container:
        for language in tracks:
            stream = container.add_stream(codec, rate=16_000, layout="mono")
            stream.metadata["language"] = language
            stream.disposition = Disposition.default if language == default else Disposition(0)
        for stream, waveform in zip(container.streams.audio, tracks.values(), strict=True):
            sound = av.AudioFrame.from_ndarray(waveform[None], "fltp", "mono")
            sound.sample_rate, sound.pts, sound.time_base = 16_000, 0, Fraction(1, 16_000)
            container.mux(stream.encode(sound) + stream.encode())
    return path


def hertz(waveform: Float32[np.ndarray, " t"], sampling_rate: int = 16_000) -> float:
    """Returns the loudest frequency."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(waveform.size)))
    return int(spectrum.argmax()) * sampling_rate / waveform.size


def read_frames(path: Path, indices: Iterable[int]) -> UInt8[np.ndarray, "n h w 3"]:
    """Reads the frames at these indices, in any order."""
    wanted, inverse = np.unique(list(indices), return_inverse=True)
    return np.stack(list(iterate_frames(path, wanted)))[inverse]
