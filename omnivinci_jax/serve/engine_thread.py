"""Runs the engine in a thread of its own; conversations join from asyncio and receive their answers there."""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal

from omnivinci_jax.errors import UserError, describe
from omnivinci_jax.generate.answers import Transcript
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.media import Loaded
from omnivinci_jax.generate.request import Prompt, Request, Sampling
from omnivinci_jax.generate.scheduler import Prefill
from omnivinci_jax.sequence.chat import Conversation, Media

_LOG = logging.getLogger("omnivinci")


class QueueFull(Exception):
    """The server has as many requests as it accepts; `retry_seconds` is when to come back."""

    def __init__(self, retry_seconds: int):
        super().__init__(f"the queue is full: try again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


class EngineFailed(Exception):
    """The engine failed while it answered; the reason is in the server's log."""


class DeadlinePassed(Exception):
    """The answer took longer than the server allows."""


@dataclass(frozen=True)
class Delta:
    """More of an answer: its index, new text, new tokens with their log-probabilities, and what ended it."""

    answer: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["end", "stop", "length"] | None


@dataclass(eq=False)
class Job:
    """One conversation with its answers; `events` receives its Prompt, then Deltas, or an exception."""

    conversation: Conversation
    sampling: Sampling
    samples: int
    loaded: dict[tuple[Media, bool], Loaded]
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue = field(default_factory=asyncio.Queue)
    transcripts: list[Transcript] = field(default_factory=list)
    cancelled: bool = False

    def send(self, event: Prompt | Delta | Exception) -> None:
        """Sends an event from the engine's thread."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop has ended, and nobody waits
            self.cancelled = True


class EngineThread:
    """Answers jobs with one engine. Between two steps of the engine it encodes one slice of a newcomer's media."""

    def __init__(self, engine: Engine, *, rows: int, queue: int):
        """Starts the thread.

        Args:
            engine: used by this thread alone from now on.
            rows: answers that run at once.
            queue: answers that may wait.
        """
        self.engine, self.rows, self._limit = engine, rows, rows + queue
        self.pending = 0
        self.longest_piece = 0.0
        self._seconds = 1.0  # running mean of the time of an answer
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._encoding: deque[tuple[Job, Generator[None, None, Prompt]]] = deque()
        self._running: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after its current step."""
        self._inbox.put(None)
        self._thread.join()

    def reserve(self, samples: int) -> None:
        """Reserves room for so many answers until `release`; raises QueueFull."""
        if self.pending + samples > self._limit:
            waiting = max(0, self.pending - self.rows) + 1
            raise QueueFull(min(60, math.ceil(self._seconds * waiting / self.rows)))
        self.pending += samples

    def release(self, samples: int, seconds: float | None) -> None:
        """Ends a reservation; `seconds` is how long the answers took, if they finished."""
        self.pending -= samples
        if seconds is not None:
            self._seconds += 0.1 * (seconds - self._seconds)

    async def answer(
        self,
        conversation: Conversation,
        sampling: Sampling,
        samples: int,
        loaded: dict[tuple[Media, bool], Loaded],
        deadline: float,
    ) -> AsyncGenerator[Prompt | Delta, None]:
        """Yields the prompt, then the answers as they are decoded; closing the iterator cancels them.

        Args:
            conversation: to answer.
            sampling: of its answers.
            samples: number of answers.
            loaded: media that are already loaded, by item and `tiled`.
            deadline: by the loop's clock.

        Raises:
            UserError: the conversation cannot be answered.
            DeadlinePassed: it took too long.
            EngineFailed: a defect.
        """
        loop = asyncio.get_running_loop()
        job, left = Job(conversation, sampling, samples, loaded, loop), samples
        self._inbox.put(lambda: self._join(job))
        try:
            while left:
                try:
                    async with asyncio.timeout_at(deadline):
                        event = await job.events.get()
                except TimeoutError:
                    raise DeadlinePassed("the answer took longer than this server allows; ask for less") from None
                if isinstance(event, Exception):
                    raise event
                left -= isinstance(event, Delta) and event.finish is not None
                yield event
        finally:
            self._inbox.put(lambda: self._leave(job))

    def _run(self) -> None:
        while True:
            try:
                command = self._inbox.get(block=not (self._encoding or self._running))
            except Empty:
                command = self._advance
            if command is None:
                return
            try:
                command()
            except Exception as error:  # whatever fails, the server goes on
                _LOG.exception("the engine failed")
                self._fail(EngineFailed(f"the engine failed: {describe(error)}"))

    def _advance(self) -> None:
        self._encode_piece()
        began = time.monotonic()
        if isinstance(self.engine.step(short=bool(self._encoding)), Prefill):
            self.engine.wait()
            self._count_piece(began)
        self._deliver()

    def _join(self, job: Job) -> None:
        pieces = self.engine.prompt_pieces(job.conversation, lambda item, tiled: self._load(job, item, tiled))
        self._encoding.append((job, pieces))

    def _load(self, job: Job, item: Media, tiled: bool) -> Loaded:
        """Returns an item that was loaded, or that was in the cache when the job came and is no longer."""
        return job.loaded.get((item, tiled)) or self.engine.processor.load_item(item, tiled)

    def _leave(self, job: Job) -> None:
        job.cancelled = True
        self._encoding = deque(entry for entry in self._encoding if entry[0] is not job)
        if job in self._running:
            self._running.remove(job)
        for transcript in job.transcripts:
            if not transcript.request.finish:
                self.engine.cancel(transcript.request)

    def _encode_piece(self) -> None:
        """Encodes one slice of the first newcomer's media, or submits its requests."""
        if not self._encoding:
            return
        job, pieces = self._encoding[0]
        began = time.monotonic()
        try:
            next(pieces)
        except StopIteration as end:
            self._encoding.popleft()
            self._submit(job, end.value)
        except UserError as error:
            self._encoding.popleft()
            job.send(error)
        except Exception as error:
            self._encoding.popleft()
            _LOG.exception("a conversation could not be encoded")
            job.send(EngineFailed(f"the conversation could not be encoded: {describe(error)}"))
        self._count_piece(began)

    def _count_piece(self, began: float) -> None:
        self.longest_piece = max(self.longest_piece, time.monotonic() - began)

    def _submit(self, job: Job, prompt: Prompt) -> None:
        job.loaded.clear()
        try:
            self.engine.check_length(prompt, job.sampling.max_new_tokens)
        except UserError as error:
            job.send(error)
            return
        job.send(prompt)
        for sample in range(job.samples):
            request = Request(prompt, job.sampling, sample)
            job.transcripts.append(Transcript(self.engine.processor.tokenizer, request))
            self.engine.submit(request)
        self._running.append(job)

    def _deliver(self) -> None:
        for job in list(self._running):
            for index, transcript in enumerate(job.transcripts):
                if not transcript.has_more:
                    continue
                before = len(transcript.tokens)
                text = transcript.read()
                if transcript.finish == "stop":
                    self.engine.cancel(transcript.request)
                tokens = tuple(transcript.tokens[before:])
                logprobs = tuple(transcript.request.logprobs[before : before + len(tokens)])
                job.send(Delta(index, text, tokens, logprobs, transcript.finish))
            if all(transcript.finish for transcript in job.transcripts):
                self._running.remove(job)

    def _fail(self, error: EngineFailed) -> None:
        for job in self._running:
            for transcript in job.transcripts:
                if not transcript.request.finish:
                    self.engine.cancel(transcript.request)
            job.send(error)
        self._running.clear()
