"""Decodes media in worker processes, within limits. Imports no jax, so that the workers start fast."""

import asyncio
import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from omnivinci_jax.data.processor import MediaReader
from omnivinci_jax.data.shards import on_disk
from omnivinci_jax.errors import MediaError, UserError, describe
from omnivinci_jax.media import container as ffmpeg
from omnivinci_jax.media import decode, stills
from omnivinci_jax.sequence.chat import Inline, Media

_LOG = logging.getLogger("omnivinci")
_reader: "LimitedReader | None" = None


@dataclass(frozen=True)
class Limits:
    """Limits of one media file: bytes, pixels of an image or frame, seconds of a sound or video."""

    max_bytes: int = 256 * 2**20
    max_pixels: int = 50_000_000
    max_seconds: float = 3600.0


@dataclass(frozen=True)
class LimitedReader:
    """A MediaReader that first checks each item against the limits."""

    reader: MediaReader
    limits: Limits

    def load_item(self, item: Media, tiled: bool) -> tuple:
        """See `MediaReader.load_item`; raises MediaError beyond a limit."""
        self.check(item)
        return self.reader.load_item(item, tiled)

    def check(self, item: Media) -> None:
        """Reads only headers and packets; raises MediaError if a limit is passed."""
        limits = self.limits
        with on_disk(item) as file:
            size = os.path.getsize(file.path) if not isinstance(item.stored, Inline) else len(item.stored.content)
            if size > limits.max_bytes:
                raise MediaError(f"{file.path}: has {size:,} bytes; this server reads at most {limits.max_bytes:,}")
            with stills.open_by_pillow(file.path) as image:
                pixels, frames = (image.width * image.height, getattr(image, "n_frames", 1)) if image else (0, 1)
            if not image:
                pixels, seconds = _container_size(file.path)
                self._check_seconds(file, seconds)
            if pixels > limits.max_pixels:
                raise MediaError(f"{file.path}: has {pixels:,} pixels; this server reads at most {limits.max_pixels:,}")
            if pixels * frames > 20 * limits.max_pixels:
                raise MediaError(
                    f"{file.path}: its {frames} frames of {pixels:,} pixels are more than this server reads"
                )
            if item.kind == "sound":
                self._check_seconds(file, decode.probe_audio(file.path, file.track))

    def _check_seconds(self, file: Media, seconds: float) -> None:
        if seconds > self.limits.max_seconds:
            raise MediaError(
                f"{file.path}: lasts {seconds:,.0f} s; this server reads at most {self.limits.max_seconds:,.0f} s"
            )


def _container_size(path: str) -> tuple[int, float]:
    """Returns the pixels of a frame, and the seconds that the header tells (0 if none)."""
    with ffmpeg.open_container(path) as container:
        video = ffmpeg.default_video(container)
        # Without a decoder, a video has no size.
        pixels = video.width * video.height if video and video.codec_context else 0
        return pixels, (container.duration or 0) / 1e6


class Decoders:
    """A pool of worker processes that read media."""

    def __init__(self, reader: LimitedReader, workers: int):
        """Starts workers on first use."""
        self._reader, self._workers = reader, workers
        self._pool = self._new_pool()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls `function(reader, *arguments)` in a worker.

        Raises:
            MediaError: what the function raises; or the worker died, as it does on a file that takes all memory.
        """
        pool = self._pool
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, _call, function, *arguments)
        except BrokenProcessPool:
            if pool is self._pool:
                pool.shutdown(wait=False)
                self._pool = self._new_pool()
            raise MediaError("a media file could not be decoded: the process that read it died") from None
        except UserError:
            raise
        except Exception as error:  # whatever one file raises fails its request alone
            _LOG.exception("a media file could not be decoded")
            raise MediaError(f"a media file could not be decoded: {describe(error)}") from None

    def close(self) -> None:
        """Ends the workers after what they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._workers, spawn, initializer=_start, initargs=(self._reader,))


def _start(reader: LimitedReader) -> None:
    global _reader
    _reader = reader


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(_reader, *arguments)
