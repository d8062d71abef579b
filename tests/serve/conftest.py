"""A server with a tiny model, in a thread."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from omnivinci_jax.generate.assistant import Assistant
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.serve.app import make_app
from omnivinci_jax.serve.service import Settings
from omnivinci_jax.settings import VoiceConfig
from omnivinci_jax.speech import Sound, Voice
from tests.generate.conftest import tiny_assistant


@pytest.fixture(scope="session")
def assistant() -> Assistant:
    return tiny_assistant()


@pytest.fixture(scope="session")
def clips(av_world) -> list[Path]:
    return sorted((av_world / "clips").glob("train*"))


class Tone:
    """A voice that says a tone of 0.1 s for each sentence."""

    config = VoiceConfig()

    def say(self, text: str) -> Sound:
        return Sound(np.sin(np.arange(1600) * 2 * np.pi * 440 / 16000).astype(np.float32) / 2, 16000)


@contextmanager
def serving(
    assistant: Assistant,
    settings: Settings,
    voice: Voice | None = None,
    *,
    port: int = 0,
    wrap: Callable[[FastAPI], ASGIApp] = lambda app: app,
) -> Iterator[str]:
    """Serves an assistant's model; yields the address."""
    engine = Engine(*assistant, rows=settings.rows)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        config = uvicorn.Config(wrap(make_app(engine, "tiny", settings, voice)), log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def client_of(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
