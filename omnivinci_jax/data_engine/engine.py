"""Runs the stages over all videos of a folder: concurrently, in order, with bounded memory; resumes by its store."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import httpx

from omnivinci_jax.data_engine.answers import AnswerError
from omnivinci_jax.data_engine.client import MediaCache, Model, Stopped
from omnivinci_jax.data_engine.clips import cut_segments, probe, segment_spans, source_identity
from omnivinci_jax.data_engine.prompts import Prompt
from omnivinci_jax.data_engine.settings import EngineConfig
from omnivinci_jax.data_engine.stages import STAGES, Row, Stage, Tools
from omnivinci_jax.data_engine.store import Store, digest
from omnivinci_jax.errors import MediaError, describe
from omnivinci_jax.speech import make_voice

VERSION = 1  # raise it when the same requests' answers give other rows
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".wmv"}
_CACHED_CLIPS = 64  # of about a megabyte each
# Settings that change how fast and at which price rows are made, not which.
_OPERATIONAL = {"budget", "rows", "threads", "examples", "frame_tokens", "sound_tokens", "prompts"}


def find_videos(folder: Path) -> Iterator[Path]:
    """Yields the videos below a folder, by their suffix, in a fixed order."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from find_videos(entry)
        elif entry.suffix.lower() in VIDEO_SUFFIXES and not entry.name.startswith("."):
            yield entry


class Engine:
    """The stages with their models, over one folder of results."""

    def __init__(
        self,
        config: EngineConfig,
        prompts: dict[str, Prompt],
        store: Store,
        out: Path,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        """`transport` replaces the network."""
        self.config, self.prompts, self.store, self.out = config, prompts, store, out.absolute()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        self._http = httpx.AsyncClient(transport=transport, limits=limits, timeout=None)
        self._threads = ThreadPoolExecutor(config.threads)
        self._closing = False
        media = MediaCache(_CACHED_CLIPS)
        models = {
            role: Model(role, model, store, self._http, media, self._check) for role, model in config.models.items()
        }
        voice = make_voice(config.voice) if config.speech_share else None
        self._tools = Tools(config, prompts, models, self.out, voice)
        settings = {name: value for name, value in asdict(config).items() if name not in _OPERATIONAL}
        identities = {role: model.identity for role, model in config.models.items()}
        hashes = {name: prompt.sha256 for name, prompt in prompts.items()}
        self._fingerprint = digest(VERSION, settings | dict.fromkeys(_ROLES) | identities, hashes).hex()

    async def close(self) -> None:
        """Waits for the requests that are on their way, and closes connections and threads."""
        self._closing = True
        await asyncio.gather(*(model.finish() for model in self._tools.models.values()))
        await self._http.aclose()
        self._threads.shutdown(cancel_futures=True)

    async def rows(self, folder: Path) -> AsyncIterator[list[Row]]:
        """Yields the rows of each video of a folder, in order; at most `config.rows` videos are in work.

        Raises:
            Stopped: the budget is spent; everything up to there is stored.
        """
        folder = folder.absolute()
        asyncio.get_running_loop().set_default_executor(self._threads)
        window: deque[asyncio.Task[list[Row]]] = deque()
        try:
            for path in find_videos(folder):
                window.append(asyncio.create_task(self.video_rows(folder, path)))
                if len(window) >= self.config.rows:
                    yield await window.popleft()
            while window:
                yield await window.popleft()
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)

    async def video_rows(self, folder: Path, path: Path) -> list[Row]:
        """Returns the rows of a video: one for each segment, or one with an error."""
        video = path.relative_to(folder).as_posix()
        try:
            source = source_identity(folder, path)
        except OSError as error:
            return [_failed({"id": video, "video": video}, "probe", error)]
        key = digest("rows", self._fingerprint, str(folder), source)
        if (stored := self.store.get(key)) is not None:
            rows = json.loads(stored)
            if all(Path(row["file"]).exists() for row in rows if "file" in row):
                return rows
        rows = await self._make_rows(path, video, source)
        if not any(row.get("error", {}).get("again") for row in rows):
            self.store.put(key, "rows", json.dumps(rows))
        return rows

    async def probed(self, path: Path, source: tuple) -> Row:
        """Returns what `probe` finds; raises MediaError."""
        key = digest("probe", source)
        stored = self.store.get(key)
        if stored is None:
            stored = self.store.put(key, "probe", json.dumps(await asyncio.to_thread(probe, path)))
        return json.loads(stored)

    async def _make_rows(self, path: Path, video: str, source: tuple) -> list[Row]:
        row, stage = {"id": video, "video": video}, "probe"
        try:
            probed = await self.probed(path, source)
            stage = "cut"
            segments = segment_spans(probed, self.config.segment_seconds, self.config.clip_seconds)
            files = [path]
            if len(segments) > 1:
                files = await asyncio.to_thread(cut_segments, path, probed["sha256"], segments, self.out)
        except Exception as error:  # whatever one file raises ends that row alone
            return [_failed(row, stage, error)]
        rows = [
            segment | {
                "id": f"{probed['sha256'][:16]}-{segment['start']:.3f}-{segment['end']:.3f}",
                "video": video,
                "file": str(file),
                "sha256": probed["sha256"],
                "levels": probed["levels"],
            }
            for segment, file in zip(segments, files, strict=True)
        ]  # fmt: skip
        return await asyncio.gather(*(self._through_stages(row) for row in rows))

    async def _through_stages(self, row: Row) -> Row:
        for stage in STAGES:
            row = await run_stage(stage, row, self._tools)
        del row["levels"]
        return row

    def _check(self) -> None:
        if self._closing:
            raise Stopped("the run ends")
        if self.config.budget and (spent := self.dollars()) >= self.config.budget:
            raise Stopped(
                f"the budget is spent: ${spent:.2f} of config.budget = {self.config.budget:g}; with a higher one, "
                "the same command goes on from here"
            )

    def dollars(self) -> float:
        """Returns what all runs into this folder have cost."""
        totals = self.store.totals()
        return sum(
            model.dollars(totals[role].prompt_tokens, totals[role].answer_tokens)
            for role, model in self.config.models.items()
            if role in totals
        )


_ROLES = ("vision", "audio", "corrector", "questioner", "judge")


async def run_stage(stage: Stage, row: Row, tools: Tools) -> Row:
    """Returns the row after a stage, unless it is dropped or failed before."""
    if "error" in row or "drop" in row:
        return row
    try:
        return await stage(row, tools)
    except Stopped:
        raise
    except Exception as error:  # whatever one row raises ends that row alone
        return _failed(row, stage.__name__, error)


def _failed(row: Row, stage: str, error: Exception) -> Row:
    # A bad answer and a bad file are results; a server that was away, or a full disk, is none.
    again = not isinstance(error, AnswerError | MediaError)
    return row | {"error": {"stage": stage, "reason": describe(error), "again": again}}
