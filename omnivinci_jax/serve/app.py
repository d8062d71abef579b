"""The HTTP endpoints. Every error is one line: {"error": {"message": …}}."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnivinci_jax.errors import UserError, printable
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.sequence.chat import TRANSCRIBE, Conversation, valid_text
from omnivinci_jax.sequence.chat import Message as Turn
from omnivinci_jax.serve.chat import Chat
from omnivinci_jax.serve.content import read_conversation, uploaded
from omnivinci_jax.serve.engine_thread import DeadlinePassed, EngineFailed, QueueFull
from omnivinci_jax.serve.schema import ChatBody, TimelineBody
from omnivinci_jax.serve.service import Service, Settings
from omnivinci_jax.speech import Voice

_PAGE = Path(__file__).parent / "page"


def make_app(engine: Engine, name: str, settings: Settings | None = None, voice: Voice | None = None) -> FastAPI:
    """Makes the application that serves an engine, for example that of `omnivinci_jax.load(dir)`.

    Args:
        engine: used by the server alone from now on.
        name: of the model, in /v1/models.
        settings: None: the defaults.
        voice: speaks answers; None: they are text only.
    """
    settings = settings or Settings()
    service = Service(engine, name, settings, voice)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="OmniVinci", lifespan=lifespan)
    app.state.service = service
    app.add_middleware(_Guard, service=service)
    for kind in (UserError, EngineFailed, DeadlinePassed, QueueFull, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _error_response)
    created = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict:
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": created, "owned_by": "omnivinci"}],
        }

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "pending": service.engine.pending}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/v1/chat/completions")
    async def completions(body: ChatBody, request: Request) -> Response:
        if "audio" in body.modalities and voice is None:
            raise UserError("modalities: this server has no voice: start it with --voice or --speech_server")
        sampling = body.sampling(secrets.randbelow(2**32))
        conversation = await read_conversation(body.messages, body.mm_processor_kwargs, settings.sources)
        if body.stream and "audio" in body.modalities and body.audio and body.audio.format != "pcm16":
            raise UserError("audio.format: a stream is spoken as pcm16")
        chat = _chat(body, conversation, sampling)
        if body.stream:
            # The first event waits for the prompt, so that an error of the request has its own status.
            stream = chat.streamed()
            first = await _unless_gone(request, anext(stream))
            return _stream_response(first, stream)
        return JSONResponse(await _unless_gone(request, chat.whole()))

    def _chat(body: ChatBody, conversation: Conversation, sampling: Any) -> Chat:
        return Chat(service, body, conversation, sampling, asyncio.get_running_loop().time() + settings.timeout)

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(
        request: Request,
        file: UploadFile,
        model: Annotated[str, Form()] = "",
        prompt: Annotated[str, Form()] = TRANSCRIBE,
        response_format: Annotated[Literal["json", "text"], Form()] = "json",
        temperature: Annotated[float, Form()] = 0.0,
        max_tokens: Annotated[int, Form()] = 256,
    ) -> Response:
        item = uploaded("sound", file.filename or "file", await file.read())
        conversation = Conversation((Turn("user", (item, valid_text(prompt))),), "file")
        question: Any = [{"role": "user", "content": "transcribe"}]
        body = ChatBody(messages=question, temperature=temperature, max_tokens=max_tokens)
        chat = _chat(body, conversation, body.sampling(secrets.randbelow(2**32)))
        answer = await _unless_gone(request, chat.whole())
        text = answer["choices"][0]["message"]["content"]
        if response_format == "text":
            return PlainTextResponse(text)
        return JSONResponse({"text": text, "usage": answer["usage"]})

    @app.post("/v1/timeline")
    async def timeline(body: TimelineBody) -> dict:
        conversation = await read_conversation(body.messages, body.mm_processor_kwargs, settings.sources)
        return await service.timeline(conversation)

    if (_PAGE / "index.html").exists():
        app.mount("/", StaticFiles(directory=_PAGE, html=True))
    return app


def _stream_response(first: str, rest: AsyncGenerator[str, None]) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        try:
            yield first
            async for event in rest:
                yield event
        finally:
            await rest.aclose()

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _unless_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """Awaits an answer, and cancels it when the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(499, "the client went away")
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _error_response(_: Request, error: Exception) -> JSONResponse:
    headers, kind = {}, "invalid_request_error"
    match error:
        case RequestValidationError():
            status, problem = 400, error.errors()[0]
            where = ".".join(str(key) for key in problem["loc"] if key != "body")
            text = f"{where}: {problem['msg']}" if where else problem["msg"]
        case HTTPException():
            status, text = error.status_code, str(error.detail)
        case QueueFull():
            status, text, kind, headers = 429, str(error), "rate_limit", {"Retry-After": str(error.retry_seconds)}
        case DeadlinePassed():
            status, text, kind = 504, str(error), "timeout"
        case UserError():
            status, text = 400, str(error)
        case _:
            status, text, kind = 500, str(error), "server_error"
    message = " ".join(printable(text).split())
    return JSONResponse({"error": {"message": message, "type": kind, "code": None}}, status, headers)


class _Guard:
    """Refuses bodies that are too large, and counts responses."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, read = self._service.settings.max_body, 0
        path = scope["path"] if scope["path"] in _COUNTED else "other"

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise HTTPException(413, f"the body is larger than the {limit:,} bytes that this server reads")
            return message

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.metrics.responses.labels(path, message["status"]).inc()
            await send(message)

        await self._app(scope, limited, counted)


_COUNTED = {"/v1/chat/completions", "/v1/audio/transcriptions", "/v1/timeline", "/v1/models", "/health", "/metrics"}
