"""Real kinds of files, good and broken, and what is said about them."""

import json
from pathlib import Path

import numpy as np
import pillow_heif
import soundfile
from PIL import Image

from tests.media.files import join, numbered_frames, tone, write_picture, write_sound_tracks, write_video

# (type of the item, file, track, what is said about it, if anything)
FILES = (
    ("audio", "nan.wav", None, "holds samples that are not finite, the first at 0.5 s; export it again"),
    ("video", "nan.mov", None, "holds samples that are not finite, the first at 0.5 s; export it again"),
    ("audio", "half.wav", None, "is cut off at 1.2 s of 2.0 s"),
    ("audio", "half.flac", None, "is cut off at 1.3 s of 2.0 s"),
    ("video", "half.mkv", None, "is cut off at "),
    ("audio", "half.mp3", None, "is cut off at "),
    ("audio", "tracks.mka", 3, "has no sound track 3; it has 1 (eng, pcm_s16le), 2 (fra, pcm_s16le, default)"),
    ("audio", "text.mp3", None, "is cut off, damaged, or not a media file that FFmpeg can read"),
    ("image", "moving.webp", None, "is an animation of 2 frames; give it as a video, or save one frame"),
    ("image", "half.heic", None, ""),
    ("audio", "infinite.aiff", None, "holds samples that are not finite, the first at 0.5 s; export it again"),
    ("video", "half.gif", None, "is cut off at "),
    ("image", "half.exr", None, "is cut off at "),
    ("video", "moving.webp", None, None),
    ("image", "photo.heic", None, None),
    ("audio", "chained.ogg", None, None),
    ("audio", "tracks.mka", None, None),
    ("audio", "tracks.mka", 1, None),
    ("audio", "last.wma", None, None),
    ("audio", "joined.mp3", None, None),
    ("video", "joined.ts", None, None),
    ("video", "no_times.h264", None, None),
    ("image", "scan.dpx", None, None),
)


def write_mixed_files(folder: Path) -> None:
    """Writes the files of `FILES`."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000).astype(np.float32)
    nan = noise.copy()
    nan[8_000] = np.nan
    soundfile.write(folder / "nan.wav", nan, 16_000, subtype="FLOAT")
    write_video(folder / "nan.mov", numbered_frames(24), fps=12, waveform=nan, audio_codec="pcm_f32le")
    nan[8_000] = np.inf
    soundfile.write(folder / "infinite.aiff", nan, 16_000, subtype="FLOAT")
    soundfile.write(folder / "half.wav", noise, 16_000)
    soundfile.write(folder / "half.flac", noise, 16_000)
    write_video(folder / "half.mkv", numbered_frames(24), fps=12, waveform=noise)
    write_video(folder / "half.mp3", None, waveform=noise, audio_codec="libmp3lame")
    pillow_heif.from_pillow(Image.fromarray(numbered_frames(1)[0])).save(folder / "photo.heic")
    write_video(folder / "half.gif", numbered_frames(24), fps=10, codec="gif", pix_fmt="rgb8")
    write_picture(folder / "half.exr", numbered_frames(1)[0], "exr", "gbrpf32le")
    write_picture(folder / "scan.dpx", numbered_frames(1)[0], "dpx", "gbrp10be")
    (folder / "half.heic").write_bytes((folder / "photo.heic").read_bytes())
    for half in folder.glob("half.*"):
        half.write_bytes(half.read_bytes()[: round(half.stat().st_size * 0.6)])
    tracks = {"eng": tone(2, hertz=500), "fra": tone(2, hertz=1_000)}
    write_sound_tracks(folder / "tracks.mka", tracks, default="fra")
    (folder / "text.mp3").write_text("not a sound\n" * 99)
    pages = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    pages[0].save(folder / "moving.webp", save_all=True, append_images=pages[1:], duration=500)
    soundfile.write(folder / "a.ogg", tone(1), 16_000, format="OGG", subtype="VORBIS")
    join(folder / "chained.ogg", folder / "a.ogg", folder / "a.ogg")
    write_video(folder / "a.mp3", None, waveform=tone(1), audio_codec="libmp3lame")
    join(folder / "joined.mp3", folder / "a.mp3", folder / "a.mp3")
    write_video(folder / "a.ts", numbered_frames(12), fps=12, waveform=tone(1))
    join(folder / "joined.ts", folder / "a.ts", folder / "a.ts")
    write_video(folder / "no_times.h264", numbered_frames(24), fps=12)
    wma = {"sampling_rate": 44_100, "audio_codec": "wmav2", "audio_bit_rate": 64_000}
    write_video(folder / "last.wma", None, waveform=tone(2, sampling_rate=44_100), **wma)


def question_about(kind: str, name: str, track: int | None) -> str:
    """Returns a line of JSONL: a conversation about one file."""
    item = {"type": kind, kind: name} | ({"track": track} if track else {})
    turns = [{"role": "user", "content": [item]}, {"role": "assistant", "content": "yes"}]
    return json.dumps({"messages": turns}) + "\n"
