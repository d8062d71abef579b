"""A server with the endpoints of `omnivinci serve` and no model: canned answers, and a timeline by the real media code.

`python -m tests.serve.fake_server 8000` serves the page for a look at it.
"""

import base64
import dataclasses
import io
import json
import mimetypes
import re
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

import omnivinci_jax
from omnivinci_jax.data.processor import MediaReader
from omnivinci_jax.errors import UserError
from omnivinci_jax.sequence.batch import AUDIO
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from omnivinci_jax.sequence.row import SoundSize, VideoSize, lay_out_media
from tests.tiny import tiny_config, tiny_settings

PAGE = Path(omnivinci_jax.__file__).parent / "serve" / "page"
ANSWER = (
    "The clip shows **coloured shapes** that change about once a second, each with a sound of its own:\n\n"
    "- an orange disc while a low hum plays,\n- then a magenta square, in silence,\n- and a short beep near the end."
)
# tiny's reading of media, with tiles large enough to look at
_CONFIG = tiny_config(
    vision=dataclasses.replace(tiny_settings().model.vision, image_size=112), s2_scales=(112, 224, 336)
)


def read_timeline(part: dict) -> dict:
    """Returns the item of `/v1/timeline` for a part of a message.

    Raises:
        UserError: the media cannot be read.
    """
    name, kind, data = _decode(part)
    with tempfile.NamedTemporaryFile(suffix=f"-{name}") as file:
        file.write(data)
        file.flush()
        conversation = Conversation((Message("user", (Media(kind, file.name),)),))
        (size,), tiles, windows = MediaReader(_CONFIG).load(conversation)
    row = lay_out_media(conversation.media[0], size, _CONFIG)
    times = size.frame_times if isinstance(size, VideoSize) else [0.0] * (kind == "image")
    seconds = 0.0 if kind == "image" else size.seconds
    sound = size if isinstance(size, SoundSize) else getattr(size, "sound", None)
    step = _CONFIG.temporal_group_seconds if kind == "video" else None
    starts = np.arange(0, seconds - 0.05 * step, step) if step else []
    return {
        "kind": kind,
        "name": name,
        "seconds": seconds,
        "frames": [{"time": time, "jpeg": _url(tile, "jpeg")} for time, tile in zip(times, tiles, strict=False)],
        "mel": _mel(windows, seconds) if sound else None,
        "groups": [
            {"start": float(start), "end": float(start + step if start < starts[-1] else seconds)} for start in starts
        ],
        "tokens": {
            "vision": int((row.slot_kind > AUDIO).sum()),
            "audio": int((row.slot_kind == AUDIO).sum()),
        },
    }


def _decode(part: dict) -> tuple[str, str, bytes]:
    """Returns a part's file name, kind and bytes."""
    if part["type"] == "input_audio":
        sound = part["input_audio"]
        return f"sound.{sound['format']}", "sound", base64.b64decode(sound["data"])
    kind = {"image_url": "image", "video_url": "video"}[part["type"]]
    header, data = part[part["type"]]["url"].split(",", 1)
    (mime,) = re.fullmatch("data:(.+);base64", header).groups()
    return f"{kind}{mimetypes.guess_extension(mime)}", kind, base64.b64decode(data)


def _mel(windows: np.ndarray, seconds: float) -> str:
    mel = windows.reshape(-1, windows.shape[-1])
    mel = mel[: round(seconds * _CONFIG.sampling_rate / _CONFIG.audio_hop_length)]
    scaled = (mel - mel.min()) / max(np.ptp(mel), 1e-6)
    return _url((matplotlib.colormaps["magma"](scaled.T[::-1])[..., :3] * 255).astype(np.uint8), "png")


def _url(pixels: np.ndarray, form: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"


def _parts(messages: list[dict]) -> list[dict]:
    return [part for message in messages if message["role"] == "user" for part in message["content"]]


def _tone() -> str:
    """Half a second of 440 Hz, as 16-bit PCM at 24 kHz."""
    samples = (8000 * np.sin(2 * np.pi * 440 * np.arange(12000) / 24000)).astype(np.int16)
    return base64.b64encode(struct.pack(f"<{len(samples)}h", *samples)).decode()


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode())
            return
        file = PAGE / ("index.html" if self.path == "/" else self.path.strip("/"))
        if file.parent == PAGE and file.is_file():
            self._send(file.read_bytes(), mimetypes.guess_type(file.name)[0] or "")
        else:
            self._refuse(404, f"{self.path}: there is no such page")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body))
        if self.path == "/v1/timeline":
            try:
                parts = [part for part in _parts(body["messages"]) if part["type"] != "text"]
                answer = {"items": [read_timeline(part) for part in parts], "text_tokens": 8}
            except UserError as error:
                self._refuse(400, str(error))
            else:
                self._send(json.dumps(answer).encode())
        else:
            self._answer(body)

    def _answer(self, body: dict) -> None:
        """Streams an answer; the question decides: "refuse", "break off", "without end", "Say …", or ANSWER."""
        question = "".join(part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text")
        if "refuse" in question:
            self._refuse(400, "The prompt has 9000 tokens; this server takes at most 4096.")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        words = re.findall(r"\S+\s*", question.removeprefix("Say ") if question.startswith("Say ") else ANSWER)
        try:
            for word in words * 1000 if "without end" in question else words:
                self._event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
                if "break off" in question:
                    self._event({"error": {"message": "The model ran out of memory."}})
                    return
                time.sleep(self.server.pause)
        except OSError:
            self.server.disconnected.set()
            return
        if "audio" in body.get("modalities", ()):
            self._event({"choices": [{"index": 0, "delta": {"audio": {"id": "a", "data": _tone()}}}]})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": self._usage(body["messages"], len(words))})
        self.wfile.write(b"data: [DONE]\n\n")

    def _usage(self, messages: list[dict], answer: int) -> dict:
        items = [read_timeline(part)["tokens"] for part in _parts(messages) if part["type"] != "text"]
        details = {f"{name}_tokens": sum(item[name] for item in items) for name in ("vision", "audio")}
        details["text_tokens"] = sum(len(part["text"].split()) for part in _parts(messages) if part["type"] == "text")
        return {"prompt_tokens": sum(details.values()), "completion_tokens": answer, "prompt_tokens_details": details}

    def _event(self, data: dict) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def _send(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, message: str) -> None:
        self._send(json.dumps({"error": {"message": message}}).encode(), status=status)

    def log_message(self, *_) -> None:
        pass


class _Server(ThreadingHTTPServer):
    """`requests` are the paths and bodies that came; `disconnected` is set when a client stops an answer."""

    daemon_threads = True

    def __init__(self, port: int, pause: float):
        super().__init__(("127.0.0.1", port), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.pause = pause
        self.requests: list[tuple[str, dict]] = []
        self.disconnected = threading.Event()


@contextmanager
def serve(port: int = 0, pause: float = 0.01) -> Iterator[_Server]:
    """Serves in a thread; `pause` is the time between tokens in seconds."""
    with _Server(port, pause) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


if __name__ == "__main__":
    with serve(int(sys.argv[1]), pause=0.04) as shown:
        print(shown.address)
        threading.Event().wait()
