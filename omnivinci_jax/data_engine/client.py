"""A model behind a URL: requests in OpenAI's form, with retries, limits, and stored answers."""

import asyncio
import json
import os
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

from omnivinci_jax.data_engine.answers import AnswerError, Form, read_answer
from omnivinci_jax.data_engine.limiter import Limiter
from omnivinci_jax.data_engine.settings import ModelConfig
from omnivinci_jax.data_engine.store import Store, digest
from omnivinci_jax.errors import UserError
from omnivinci_jax.sequence.chat import valid_text

_LONGEST_WAIT = 60.0  # seconds
_RETRIED = {408, 409, 425, 429}  # and 500 and above


class ServerError(UserError):
    """A server that gives no answer. It is not a result: the same command asks again."""


class Stopped(UserError):
    """The run ends: all dollars are spent, or it was interrupted."""


@dataclass(frozen=True)
class Attachment:
    """Media of a request: what they show, and a function that loads them as parts of a message."""

    identity: tuple
    load: Callable[[], list[dict[str, Any]]]


class MediaCache:
    """The attachments that were loaded last, since several requests in a row show the same clips."""

    def __init__(self, size: int):
        self._size = size
        self._loads: OrderedDict[tuple, asyncio.Task[list[dict[str, Any]]]] = OrderedDict()

    async def load(self, attachment: Attachment) -> list[dict[str, Any]]:
        """Returns the parts of an attachment; raises what loading it raises."""
        key = attachment.identity
        if key not in self._loads:
            self._loads[key] = asyncio.create_task(asyncio.to_thread(attachment.load))
        self._loads.move_to_end(key)
        if len(self._loads) > self._size:
            self._loads.popitem(last=False)
        return await asyncio.shield(self._loads[key])


class _Answer(NamedTuple):
    text: str
    prompt_tokens: int
    answer_tokens: int


class Model:
    """A model in one role."""

    def __init__(
        self,
        role: str,
        config: ModelConfig,
        store: Store,
        http: httpx.AsyncClient,
        media: MediaCache,
        check: Callable[[], None],
    ):
        """`check` raises Stopped when no more requests may be sent."""
        self.role, self.config = role, config
        self._store, self._http, self._media, self._check = store, http, media, check
        self._slots = asyncio.Semaphore(config.concurrency)
        self._limiter = Limiter(config.requests_per_minute, config.tokens_per_minute)
        self._running: dict[bytes, asyncio.Task[str]] = {}
        self._url = httpx.URL(f"{config.url.rstrip('/')}/v1/chat/completions")
        key = os.environ.get(config.key_variable)
        self._headers = {"Content-Type": "application/json", "User-Agent": "omnivinci"}
        self._headers |= {"Authorization": f"Bearer {key}"} if key else {}

    async def ask(self, content: Sequence[str | Attachment]) -> str:
        """Returns the answer to a message of texts and media; a stored one if it has been asked before.

        Raises:
            ServerError: no answer after all tries.
            Stopped: the request may not be sent.
        """
        items = [item if isinstance(item, str) else item.identity for item in content]
        key = digest("answer", self.role, self.config.identity, items)
        stored = self._store.get(key)
        if stored is not None:
            return stored
        if key not in self._running:
            task = asyncio.create_task(self._answer(key, content))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key))
        # A request that is on its way has to be paid for, so it goes on even if its row ends.
        return await asyncio.shield(self._running[key])

    async def finish(self) -> None:
        """Returns when the requests that are on their way are answered."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _answer(self, key: bytes, content: Sequence[str | Attachment]) -> str:
        async with self._slots:
            self._check()
            parts = []
            for item in content:
                parts += [_text(item)] if isinstance(item, str) else await self._media.load(item)
            answer = await self._request(parts)
        return self._store.put(key, self.role, *answer)

    async def ask_for(
        self, form: type[Form], content: Sequence[str | Attachment], repair: Callable[[str, str], str],
        check: Callable[[Form], None] = lambda _: None,
    ) -> Form:  # fmt: skip
        """Returns a structured answer. One that is not valid is asked for once more.

        Args:
            form: of the answer.
            content: of the message.
            repair: returns the text to add to the second message, of the first answer and its problem.
            check: raises AnswerError if an answer of the right form is still not what was asked for.

        Raises:
            AnswerError: the second answer is not valid either.
        """
        text = await self.ask(content)
        try:
            answer = read_answer(form, text)
            check(answer)
        except AnswerError as problem:
            answer = read_answer(form, await self.ask([*content, repair(text, str(problem))]))
            check(answer)
        return answer

    async def _request(self, parts: list[dict[str, Any]]) -> _Answer:
        config = self.config
        # Servers read a text alone faster, and some read nothing else.
        content = parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts
        body = {
            "model": config.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        data, problem, wait = json.dumps(body | config.extra).encode(), "", 0.0
        for attempt in range(config.retries + 1):
            if attempt:
                await asyncio.sleep(self._pause(attempt, wait))
            wait = 0.0
            await self._limiter.wait()
            self._check()
            try:
                async with asyncio.timeout(config.timeout):  # httpx's own starts again with every byte
                    request = httpx.Request("POST", self._url, headers=self._headers, content=data)
                    response = await self._http.send(request)
                if response.status_code == 200:
                    answer = _read_response(response.content, data)
                    self._limiter.used(answer.prompt_tokens + answer.answer_tokens)
                    return answer
            except TimeoutError:
                problem = f"no answer within {config.timeout:g} s"
            except httpx.HTTPError as error:
                problem = str(error) or type(error).__name__
            except _BadResponse as error:
                problem = str(error)
            else:
                problem = f"{response.status_code} {response.reason_phrase}: {response.text[:200]}"
                if response.status_code < 500 and response.status_code not in _RETRIED:
                    raise ServerError(f"{self._url}: {problem}")
                wait = _retry_after(response)
        raise ServerError(f"{self._url}: {config.retries + 1} tries, the last: {problem}")

    def _pause(self, attempt: int, wait: float) -> float:
        backoff = self.config.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1)
        return min(max(backoff, wait), _LONGEST_WAIT)


class _BadResponse(ValueError):
    pass


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _read_response(content: bytes, request: bytes) -> _Answer:
    """Reads a response; one without a count of its tokens is taken to have four bytes a token."""
    try:
        response = json.loads(content)
        text = response["choices"][0]["message"]["content"]
        usage = response.get("usage") or {}
        tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _BadResponse(f"its response is not in OpenAI's form: {content[:80]!r}") from None
    if not isinstance(text, str) or not text.strip():
        raise _BadResponse("its answer is empty")
    estimates = len(request) // 4, len(text) // 4
    counts = [count if type(count) is int else other for count, other in zip(tokens, estimates, strict=True)]
    return _Answer(valid_text(text.strip()), *counts)


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", 0)))
    except ValueError:  # a date
        return 0.0
