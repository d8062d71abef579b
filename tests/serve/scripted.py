"""The real server with answers from a script instead of the model: the question decides what is answered.

`python -m tests.serve.scripted 8000` serves the page for a look at it.
"""

import asyncio
import json
import re
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnivinci_jax.errors import UserError
from omnivinci_jax.generate.assistant import Assistant
from omnivinci_jax.generate.request import Prompt
from omnivinci_jax.sequence.chat import Conversation
from omnivinci_jax.serve.engine_thread import Delta, EngineFailed, EngineThread
from omnivinci_jax.serve.service import Settings
from tests.generate.conftest import tiny_assistant
from tests.serve.conftest import Tone, serving

ANSWER = (
    "The clip shows **coloured shapes** that change about once a second, each with a sound of its own:\n\n"
    "- an orange disc while a low hum plays,\n- then a magenta square, in silence,\n- and a short beep near the end."
)


class Script:
    """What the server's clients did.

    address: of the server. bodies: of the questions. disconnected: set when a client stops an answer.
    """

    def __init__(self, pause: float):
        """`pause` is the time between tokens in seconds."""
        self._pause = pause
        self.address = ""
        self.bodies: list[dict] = []
        self.disconnected = threading.Event()

    def direct(self, app: FastAPI) -> ASGIApp:
        """Wraps an application: keeps the bodies of questions, and answers by the script."""
        engine = app.state.service.engine
        engine.answer = lambda conversation, *_: self._answer(engine, conversation)

        async def recording(scope: Scope, receive: Receive, send: Send) -> None:
            body = b""

            async def received() -> Message:
                nonlocal body
                message = await receive()
                body += message.get("body", b"")
                if body and not message.get("more_body") and scope["path"] == "/v1/chat/completions":
                    self.bodies.append(json.loads(body))
                    body = b""
                return message

            await app(scope, received, send)

        return recording

    async def _answer(self, engine: EngineThread, conversation: Conversation) -> AsyncGenerator[Prompt | Delta, None]:
        """Yields the prompt and an answer: "refuse", "break off", "without end" and "Say …" are obeyed."""
        question = "".join(part for part in conversation.messages[-1].content if isinstance(part, str))
        if "refuse" in question:
            raise UserError("The prompt has 9000 tokens; this server takes at most 4096.")
        yield await asyncio.to_thread(engine.engine.prompt, conversation)
        words = re.findall(r"\S+\s*", question.removeprefix("Say ") if question.startswith("Say ") else ANSWER)
        try:
            for word in words * 1000 if "without end" in question else words:
                yield Delta(0, word, (0,), (0.0,), None)
                if "break off" in question:
                    raise EngineFailed("The model ran out of memory.")
                await asyncio.sleep(self._pause)
        except (asyncio.CancelledError, GeneratorExit):
            self.disconnected.set()
            raise
        yield Delta(0, "", (), (), "end")


@contextmanager
def scripted_server(assistant: Assistant, pause: float = 0.01, port: int = 0) -> Iterator[Script]:
    """Serves in a thread; `pause` as in Script."""
    script = Script(pause)
    with serving(assistant, Settings(rows=2, workers=1), Tone(), port=port, wrap=script.direct) as script.address:
        yield script


if __name__ == "__main__":
    with scripted_server(tiny_assistant(), pause=0.04, port=int(sys.argv[1])) as shown:
        print(shown.address)
        threading.Event().wait()
