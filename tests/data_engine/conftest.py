"""Small videos, and an HTTP server in OpenAI's form that can be told to fail."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from omnivinci_jax.cli import main
from tests.data_engine.answering import response
from tests.media.files import tone, write_video

ROLES = ("vision", "audio", "corrector", "questioner", "judge")


class ModelServer:
    """Counts requests; `fault` returns the name of a fault for a request's body, or None."""

    def __init__(self):
        self.requests: list[dict] = []
        self.fault: Callable[[dict], str | None] = lambda body: None
        self.seconds = 0.0
        self.lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(handler):
                content = handler.rfile.read(int(handler.headers["Content-Length"]))
                if not content:  # the client has gone
                    return
                body = json.loads(content)
                with self.lock:
                    self.requests.append(body)
                    fault = self.fault(body)
                time.sleep(self.seconds)
                self._answer(handler, body, fault)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict, fault: str | None) -> None:
        status, content, length = 200, b"", None
        if fault in ("429", "500", "400"):
            status, content = int(fault), b'{"error": "no"}'
        elif fault == "garbage":
            content = b"<html>\xff\x00"
        elif fault == "no choices":
            content = b'{"choices": []}'
        elif fault == "never":
            time.sleep(8)  # longer than the timeout of the test
        else:
            content = response(body)
            if fault == "half":
                length, content = len(content), content[: len(content) // 2]
            elif fault == "half an answer":
                reply = json.loads(content)
                text = reply["choices"][0]["message"]["content"]
                reply["choices"][0]["message"]["content"] = text[: len(text) * 2 // 3]
                content = json.dumps(reply).encode()
        try:
            handler.send_response(status)
            if status == 429:
                handler.send_header("Retry-After", "0.02")
            handler.send_header("Content-Length", str(length or len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:  # the client has gone
            pass
        if length:
            handler.close_connection = True

    def asked(self, role: str) -> int:
        return sum(body["model"] == role for body in self.requests)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serving() as server:
        yield server


@contextmanager
def serving() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """Three videos of 4, 6 and 4 s in a folder and a subfolder, with a keyframe a second, and a broken one.

    The grey level of the pictures is 40, 80 and 120, and 10 more after each 2 s. The second has no sound after 3 s, the
    third none at all.
    """
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    keyframes = {"g": "5", "keyint_min": "5", "sc_threshold": "0"}
    for name, level, seconds, sound in (("a.mp4", 40, 4, 4), ("b.mp4", 80, 6, 3), ("more/c.mp4", 120, 4, 0)):
        levels = level + 10 * (np.arange(5 * seconds) // 10)
        frames = np.broadcast_to(levels[:, None, None, None], (5 * seconds, 48, 64, 3)).astype(np.uint8)
        waveform = np.pad(tone(sound, hertz=10 * level), (0, 16_000 * (seconds - sound))) if sound else None
        write_video(folder / name, frames, fps=5, codec_options=keyframes, waveform=waveform)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def flags_of(url: str, videos: Path) -> list[str]:
    """Arguments of the command, without --out; clips of 1 s and segments of 2 s, quick retries."""
    values = {"clip_seconds": 1.0, "segment_seconds": 2.0, "frames": 2, "tries": 2}
    for role in ROLES:
        values |= {f"{role}.url": url, f"{role}.model": role, f"{role}.backoff": 0.01, f"{role}.timeout": 20.0}
        values |= {f"{role}.retries": 3}
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    return ["data-engine", "--config", "configs/data_engine.py", "--videos", str(videos), *overrides]


@pytest.fixture
def flags(server, videos) -> list[str]:
    return flags_of(server.url, videos)


@pytest.fixture(scope="session")
def calm(videos, tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder of a run that nothing disturbed, and its requests. Read-only."""
    out = tmp_path_factory.mktemp("calm")
    with serving() as server:
        assert main([*flags_of(server.url, videos), "--out", str(out)]) == 0
        return out, sorted(json.dumps(body) for body in server.requests)
