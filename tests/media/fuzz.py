"""Damages small files of every container: each must give a value or one line of error, in bounded time and memory.

`make fuzz` runs it on 10,000 files; `python -m tests.media.fuzz --files 300 --seed 1` on fewer. Files that fail are
kept in runs/fuzz.
"""

import argparse
import json
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pillow_heif
import soundfile
from PIL import Image

from tests.media.files import join, numbered_frames, tone, write_picture, write_video
from tests.memory import peak_megabytes, restart_peak
from tests.tiny import REPOSITORY

SECONDS = 10
# An image may be there in four copies of up to 4 bytes; a video decoder keeps some 20 pictures to refer to.
BYTES_PER_PIXEL = {"image": 16, "video": 60, "sound": 0}
MEGABYTES_BESIDES = 32  # these files have less than a second
MEGABYTES = 2_500  # Pillow's limit for one image is 179 megapixels
_SPECIAL = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFE)
_VIDEOS = {
    "a.mp4": {},
    "front.mp4": {"container_options": {"movflags": "faststart"}},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc.mp4": {"codec": "libx265", "codec_options": {"x265-params": "log-level=none"}},
    "a.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "audio_codec": "pcm_s16le"},
    "float.mov": {"codec": "mpeg4", "audio_codec": "pcm_f32le"},
    "a.mkv": {},
    "a.webm": {"codec": "libvpx-vp9", "audio_codec": "libopus", "codec_options": {"cpu-used": "8"}},
    "a.avi": {"codec": "mpeg4", "audio_codec": "libmp3lame"},
    "a.ts": {},
    "a.mpg": {"codec": "mpeg1video", "fps": 25, "audio_codec": "mp2"},
    "a.flv": {"codec": "flv", "audio_rate": 44_100},
    "a.wmv": {"codec": "wmv2", "audio_codec": "wmav2", "audio_bit_rate": 64_000},
    "a.h264": {"silent": True},
    "a.mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "silent": True},
    "a.nut": {"codec": "mpeg4"},
}
_SOUNDS = {
    "a.m4a": "aac", "a.aac": "aac", "a.mp3": "libmp3lame", "a.opus": "libopus", "a.oga": "flac", "a.mka": "flac",
    "a.wma": "wmav2", "a.wv": "wavpack", "a.tta": "tta", "a.ac3": "ac3",
}  # fmt: skip
_BY_SOUNDFILE = {
    "a.wav": "PCM_16", "float.wav": "FLOAT", "a.flac": "PCM_16", "a.ogg": "VORBIS", "a.aiff": "PCM_24", "a.au": "ULAW",
    "a.caf": "PCM_16", "a.w64": "PCM_16",
}  # fmt: skip
_IMAGES = {
    "a.png": {}, "a.jpg": {}, "a.webp": {}, "a.avif": {}, "a.tiff": {}, "a.bmp": {}, "a.jp2": {}, "a.gif": {},
    "a.heic": {}, "a.ppm": {}, "a.ico": {},
}  # fmt: skip


class Seed(NamedTuple):
    """A whole file and the kind that it is read as."""

    name: str
    kind: str
    data: bytes


class Outcome(NamedTuple):
    """What became of one damaged file: "value", "error", or "failure", with its message."""

    file: str
    result: str
    message: str


@cache
def seeds() -> list[Seed]:
    """Returns one small file of each container."""
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, options in _VIDEOS.items():
            options = {"fps": 12, **options}
            rate = options.pop("audio_rate", 48_000)
            waveform = None if options.pop("silent", False) else tone(0.4, 0.1, rate)
            write_video(folder / name, numbered_frames(6), waveform=waveform, sampling_rate=rate, **options)
            found.append(("video", name))
        join(folder / "joined.ts", folder / "a.ts", folder / "a.ts")
        pages = [Image.fromarray(frame) for frame in numbered_frames(4)]
        for name in ("moving.gif", "moving.webp", "moving.avif", "moving.png"):
            pages[0].save(folder / name, save_all=True, append_images=pages[1:], duration=100)
        found += [("video", name) for name in ("joined.ts", "moving.gif", "moving.webp", "moving.avif", "moving.png")]
        for name, codec in _SOUNDS.items():
            sound = {"waveform": tone(0.4, 0.1, 48_000), "sampling_rate": 48_000, "audio_bit_rate": 64_000}
            write_video(folder / name, None, audio_codec=codec, **sound)
            found.append(("sound", name))
        for name, subtype in _BY_SOUNDFILE.items():
            soundfile.write(folder / name, tone(0.4, 0.1), 16_000, subtype=subtype)
            found.append(("sound", name))
        join(folder / "joined.ogg", folder / "a.ogg", folder / "a.ogg")
        found.append(("sound", "joined.ogg"))
        pillow_heif.register_heif_opener()
        for name, options in _IMAGES.items():
            pages[3].save(folder / name, **options)
            found.append(("image", name))
        write_picture(folder / "a.exr", numbered_frames(1)[0], "exr", "gbrpf32le")
        found.append(("image", "a.exr"))
        return [Seed(name, kind, (folder / name).read_bytes()) for kind, name in found]


def damage(seed: Seed, others: list[Seed], random: np.random.Generator) -> bytes:
    """Returns the bytes of a file after one to three changes, half of them in its first bytes."""
    data = bytearray(seed.data)
    for _ in range(random.choice([1, 1, 2, 3])):
        if len(data) < 16:
            break
        limit = len(data) if random.random() < 0.5 else min(len(data), 512)
        at, length = int(random.integers(limit - 8)), int(random.integers(1, 200))
        match random.integers(8):
            case 0:
                for place in random.integers(limit, size=random.integers(1, 16)):
                    data[place] = int(random.integers(256))
            case 1:
                data[at] ^= 1 << int(random.integers(8))
            case 2:
                del data[int(random.integers(len(data))) :]
            case 3:
                data[at : at + length] = bytes([int(random.choice([0, 0xFF]))]) * len(data[at : at + length])
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                size, order = int(random.choice([1, 2, 4, 8])), "big" if random.random() < 0.5 else "little"
                value = int(random.choice(_SPECIAL)) % 2 ** (8 * size)
                data[at : at + size] = value.to_bytes(size, order)
            case 7:
                other = others[random.integers(len(others))].data
                data[at:] = other[int(random.integers(len(other))) :]
    return bytes(data)


class _Worker:
    """A process that reads files; it is started again after one that hangs or ends it."""

    def __init__(self):
        self._process: subprocess.Popen | None = None

    def read(self, kind: str, path: Path) -> tuple[str, str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.media.fuzz", "--worker"],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert self._process.stdout and self._process.stdout.readline() == "ready\n"
        process = self._process
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps([kind, str(path)]) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            self.stop()
            return "failure", f"took more than {SECONDS} s"
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.stop()
            return "failure", f"ended the process with {code}"
        return tuple(json.loads(line))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def fuzz(count: int, seed: int, keep: Path) -> Iterator[Outcome]:
    """Reads damaged files, container after container; keeps those that fail in `keep`."""
    originals, worker = seeds(), _Worker()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for index in range(count):
                original = originals[index % len(originals)]
                random = np.random.default_rng((seed, index))
                path = Path(folder) / f"{seed}-{index}-{original.name}"
                path.write_bytes(damage(original, originals, random))
                result, message = worker.read(original.kind, path)
                if result == "failure":
                    keep.mkdir(parents=True, exist_ok=True)
                    path.rename(keep / path.name)
                else:
                    path.unlink()
                yield Outcome(path.name, result, message)
    finally:
        worker.stop()


def _work() -> None:
    """Reads the files named on standard input as training does; prints the outcome of each."""
    from omnivinci_jax.data.processor import MediaReader
    from omnivinci_jax.errors import MediaError
    from omnivinci_jax.media.kinds import media_kind
    from omnivinci_jax.sequence.chat import Media
    from tests.tiny import tiny_config

    reader = MediaReader(tiny_config())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20,) * 2)
    print("ready", flush=True)
    for line in sys.stdin:
        kind, path = json.loads(line)
        limit, outcome = _planned_megabytes(kind, path), ("value", "")
        before = restart_peak()
        for read in (partial(reader.load_item, Media(kind, path), True), partial(media_kind, path)):
            try:
                read()
            except MediaError as error:
                one_line = str(error).startswith(f"{path}: ") and "\n" not in str(error)
                outcome = ("error" if one_line else "failure", str(error))
            except BaseException:
                outcome = ("failure", traceback.format_exc())
            if outcome[0] == "failure":
                break
        if peak_megabytes() - before > limit:
            outcome = ("failure", f"took {peak_megabytes() - before} MB; the limit for its picture is {limit} MB")
        print(json.dumps(outcome), flush=True)


def _planned_megabytes(kind: str, path: str) -> int:
    """Returns the limit for reading a file whose header says how large its picture is."""
    pixels = 0
    with suppress(Exception), Image.open(path) as image:
        pixels = image.width * image.height
    with suppress(Exception), av.open(path) as container:
        pixels = max([pixels, *(stream.width * stream.height for stream in container.streams.video)])
    return MEGABYTES_BESIDES + pixels * BYTES_PER_PIXEL[kind] // 2**20


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work()
        return 0
    keep, counts, began = REPOSITORY / "runs" / "fuzz", Counter(), time.monotonic()
    for number, outcome in enumerate(fuzz(arguments.files, arguments.seed, keep), start=1):
        counts[outcome.result] += 1
        if outcome.result == "failure":
            print(f"{keep / outcome.file}: {outcome.message}", flush=True)
        if number % 500 == 0 or number == arguments.files:
            done = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
            print(f"{number} files after {time.monotonic() - began:.0f} s: {done}", flush=True)
    return int(counts["failure"] > 0)


if __name__ == "__main__":
    sys.exit(main())
