"""Reading videos for the engine: what a video is, its segment files, and the parts of a request that show a clip."""

import base64
import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from omnivinci_jax.data_engine.client import Attachment
from omnivinci_jax.media import decode
from omnivinci_jax.media.cut import cut, keyframe_times, part_suffix, spans
from omnivinci_jax.media.frame_sampling import uniform_indices
from omnivinci_jax.media.levels import seconds_of, sound_levels

_RATE = 16_000


def probe(path: Path) -> dict[str, Any]:
    """Returns the content's hash, length and size of a video, its keyframes and the level of each second of sound.

    Raises:
        MediaError: it cannot be read to its end.
    """
    info = decode.probe_video(path)
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "sha256": sha256,
        "seconds": round(max(info.duration, info.audio_seconds), 3),
        "keyframes": [round(time, 3) for time in keyframe_times(path)],
        "levels": seconds_of(sound_levels(path)) if info.audio_seconds else [],
    }


def segment_spans(probed: dict[str, Any], segment_seconds: float, clip_seconds: float) -> list[dict[str, Any]]:
    """Returns the segments of a probed video, each with its clips, in seconds from the start of the segment."""
    segments = []
    for start, end in spans(probed["keyframes"], 0.0, probed["seconds"], segment_seconds):
        clips = spans(probed["keyframes"], start, end, clip_seconds)
        relative = [[round(time - start, 3) for time in clip] for clip in clips]
        segments.append({"start": start, "end": end, "clips": relative})
    return segments


def cut_segments(path: Path, sha256: str, segments: list[dict[str, Any]], out: Path) -> list[Path]:
    """Returns the files of a video's segments below `out`, cut if missing.

    Raises:
        MediaError: it cannot be cut.
    """
    folder, suffix = out / "clips" / sha256[:2], part_suffix(path)
    names = [f"{sha256[:32]}_{_milliseconds(one['start'])}_{_milliseconds(one['end'])}{suffix}" for one in segments]
    files = [folder / name for name in names]
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        cut(path, [one["start"] for one in segments], files)
    return files


def frames_of(file: Path, identity: tuple, clip: list[float], count: int, side: int) -> Attachment:
    """Returns `count` frames of a clip of a segment file as JPEG images, each after its second."""

    def load() -> list[dict[str, Any]]:
        start, end = clip
        info = decode.probe_video(file)
        shown = np.flatnonzero((info.frame_times >= start - 1e-3) & (info.frame_times < end - 1e-3))
        if not len(shown):  # the sound goes on after the last frame
            shown = np.array([len(info.frame_times) - 1])
        times = info.frame_times[shown] - start
        indices = shown[uniform_indices(times, end - start, count / (end - start), count)]
        parts = []
        for index, frame in zip(indices, decode.iterate_frames(file, indices), strict=True):
            image, buffer = Image.fromarray(frame), io.BytesIO()
            image.thumbnail((side, side))
            image.save(buffer, "JPEG", quality=90)
            parts.append({"type": "text", "text": f"{info.frame_times[index] - start:.1f} s:"})
            parts.append({"type": "image_url", "image_url": {"url": _url("image/jpeg", buffer.getvalue())}})
        return parts

    return Attachment(("frames", *identity, *clip, count, side), load)


def muted_video_of(file: Path, identity: tuple, clip: list[float]) -> Attachment:
    """Returns a clip of a segment file as a video without sound, copied from it."""

    def load() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / f"clip{part_suffix(file)}"
            cut(file, [clip[0]], [out], end=clip[1], sound=False)
            mime = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}.get(out.suffix, "video/x-matroska")
            return [{"type": "video_url", "video_url": {"url": _url(mime, out.read_bytes())}}]

    return Attachment(("video", *identity, *clip), load)


def sound_of(file: Path, identity: tuple, clip: list[float]) -> Attachment:
    """Returns the sound of a clip of a segment file as a 16 kHz WAV file."""

    def load() -> list[dict[str, Any]]:
        waveform = decode.read_waveform(file, _RATE, max_seconds=clip[1])[round(clip[0] * _RATE) :]
        buffer = io.BytesIO()
        soundfile.write(buffer, waveform, _RATE, format="WAV", subtype="PCM_16")
        data = base64.b64encode(buffer.getvalue()).decode()
        return [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]

    return Attachment(("sound", *identity, *clip), load)


def source_identity(folder: Path, path: Path) -> tuple[str, int, int]:
    """Returns what tells whether a video has changed: its name in the folder, size and time."""
    stat = os.stat(path)
    return path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000):08}"


def _url(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
