"""The server of benchmarks/serve.py, in its own process."""

import socket
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import uvicorn
from safetensors.numpy import load_file

from configs.mid import TOKENIZER
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Prompt
from omnivinci_jax.generate.scheduler import Action, Decode, Prefill
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.chat import Conversation, Message
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.serve.app import make_app
from omnivinci_jax.serve.content import Sources
from omnivinci_jax.serve.service import Settings
from tests.parity.torch_weights import params_from_torch

CAPACITY = 6144  # slots of a row: a video of 64 frames with sound takes 4,530


class _NoEnd(Tokenizer):
    """No answer ends before its last token."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.eos_id = -1


class _TimedEngine(Engine):
    """Records the seconds of each piece of encoding and prefill, and the tokens of each decode with their time."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.encoding, self.prefills, self.decoded = [], [], []

    def prompt_pieces(self, *arguments: Any, **options: Any) -> Generator[None, None, Prompt]:
        pieces = super().prompt_pieces(*arguments, **options)
        while True:
            began = time.perf_counter()
            try:
                next(pieces)
            except StopIteration as end:
                return end.value
            finally:
                self.encoding.append(time.perf_counter() - began)
            yield

    def step(self, **options: Any) -> Action | None:
        requests = [row.request for row in self.scheduler.rows if row.request]
        began, before = time.perf_counter(), sum(len(request.tokens) for request in requests)
        action = super().step(**options)
        self.wait()
        now = time.perf_counter()
        if isinstance(action, Prefill):
            self.prefills.append(now - began)
        if isinstance(action, Decode):
            self.decoded.append((now, sum(len(request.tokens) for request in requests) - before))
        return action


class ServerSide:
    """A server with the weights that the PyTorch side saved in `folder`, which also has the clips."""

    def __init__(self, config: OmniVinciConfig, folder: Path):
        """Loads the weights and serves."""
        params = params_from_torch(load_file(folder / "weights.safetensors"), config)
        self.version = f"jax {jax.__version__}"
        settings = Settings(sources=Sources(media_dir=folder))
        processor = Processor(config, _NoEnd(TOKENIZER))
        self._engine = _TimedEngine(
            OmniVinci(config), jax.device_put(params), processor, rows=settings.rows, capacity=CAPACITY, responsive=True
        )
        self._engine.compile()
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self._port = listener.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(make_app(self._engine, "mid", settings), log_level="error"))
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()

    def stop(self) -> None:
        """Ends the server and its processes."""
        self._server.should_exit = True
        self._thread.join()

    def address(self) -> str:
        """Returns the URL of the server."""
        return f"http://127.0.0.1:{self._port}"

    def prompts(self, questions: list[str]) -> list[list[int]]:
        """Returns the tokens of questions."""
        tokenizer = self._engine.processor.tokenizer
        conversations = (Conversation((Message("user", (question,)),)) for question in questions)
        return [tokenizer.encode_conversation(item, generate=True)[0].tolist() for item in conversations]

    def texts(self, answers: list[list[int]]) -> list[str]:
        """Returns the texts of answers."""
        return [self._engine.processor.tokenizer.decode(answer) for answer in answers]

    def pieces(self) -> tuple[list[float], list[float]]:
        """Returns the seconds of the pieces of encoding and of prefill since the last call."""
        engine = self._engine
        found, engine.encoding, engine.prefills = (engine.encoding, engine.prefills), [], []
        return found

    def tokens_between(self, begin: float, end: float) -> int:
        """Returns the tokens that were decoded between two moments of `time.perf_counter`."""
        return sum(count for moment, count in list(self._engine.decoded) if begin < moment <= end)
