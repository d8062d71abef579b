"""Sends a real server many requests: valid and invalid ones of its OpenAPI page, broken media, large bodies, hang-ups.

python -m tests.serve.stress --requests 1000       # make check-serve

Fails unless every answer has a documented status, no request hangs, the server's log is empty, its memory is flat
over the last half (after garbage collection, within 5 %), the answers of undisturbed requests stay the same, and the
first SIGTERM finishes what runs and the second ends the server at once.
"""

import argparse
import base64
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode

from omnivinci_jax import model_dir
from omnivinci_jax.av_world.encode import write_media
from tests.generate.conftest import tiny_assistant
from tests.serve.test_server import png, wav

# 499: the client has gone away. 500 would be a defect.
DOCUMENTED = {200, 400, 404, 405, 413, 429, 499, 504}
TIMEOUT, SECONDS = 20, 60  # of a request: the server's limit; when we call it a hang
MAX_BODY = 2**20
FLAGS = ["--rows", "4", "--queue", "8", "--max_length", "1024", "--timeout", str(TIMEOUT), "--max_body_mb", "1"]
COMPLETIONS = "/v1/chat/completions"


@contextmanager
def running_server(folder: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """Starts `omnivinci serve` with a tiny model; yields the process and its address. Its log is folder/log."""
    assistant = tiny_assistant()
    model_dir.save(folder / "tiny", assistant.model.config, assistant.params, assistant.processor.tokenizer)
    command = [sys.executable, "-m", "omnivinci_jax.cli", "serve", "--model", str(folder / "tiny"), "--port", "0"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, *FLAGS], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server does not start:\n{(folder / 'log').read_text()}")
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.wait()


def clip_in(folder: Path) -> bytes:
    """Returns a video of noise with sound; writes it in a folder."""
    path, rng = folder / "clip.mp4", np.random.default_rng(0)
    pictures, sound = rng.integers(0, 256, (8, 64, 64, 3), np.uint8), rng.normal(scale=0.1, size=(1, 64_000))
    write_media(path, pictures, 2, sound.astype(np.float32), 16_000)
    return path.read_bytes()


def url_part(kind: str, mime: str, content: bytes) -> dict:
    """Returns a content part with a data: URL."""
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{mime};base64,{base64.b64encode(content).decode()}"}}


def body_of(*parts: dict, **options: object) -> dict:
    """Returns a request's body."""
    content = [*parts, {"type": "text", "text": "What do you see?"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 16} | options


class Requests:
    """Requests of all kinds; each returns the status of the answer."""

    def __init__(self, address: str, clip: bytes, seed: int):
        """`clip` is a video to damage."""
        self._http = httpx.Client(base_url=address, timeout=SECONDS)
        self._random = random.Random(seed)
        self._files = [
            ("video", "video/mp4", clip),
            ("image", "image/png", png(90, 70)),
            ("audio", "audio/wav", wav(1)),
        ]

    def case(self, case: Case) -> int:
        """Sends a request that schemathesis has made."""
        return case.call(timeout=SECONDS).status_code

    def broken_media(self) -> int:
        """Sends a media file with changed, missing or repeated bytes."""
        kind, mime, content = self._random.choice(self._files)
        damaged = bytearray(content)
        for _ in range(self._random.randint(1, 40)):
            damaged[self._random.randrange(len(damaged))] = self._random.randrange(256)
        cut = self._random.choice([damaged, damaged[: self._random.randrange(1, len(damaged))], damaged + damaged])
        path = self._random.choice([COMPLETIONS, "/v1/timeline"])
        body = body_of(url_part(kind, mime, bytes(cut)))
        return self._post(path, body if path == COMPLETIONS else {"messages": body["messages"]})

    def large_body(self) -> int:
        """Sends a body that is larger than the server reads."""
        return self._post(COMPLETIONS, body_of(url_part("image", "image/png", bytes(MAX_BODY))))

    def hang_up(self) -> int:
        """Goes away in the middle of a stream, or before the answer; returns 499."""
        body = body_of(max_tokens=600, stream=self._random.random() < 0.7, n=self._random.randint(1, 3))
        try:
            with self._http.stream("POST", COMPLETIONS, json=body, timeout=self._random.uniform(0.05, 1)) as response:
                for _, _ in zip(range(self._random.randint(0, 5)), response.iter_lines(), strict=False):
                    pass
                return response.status_code
        except httpx.TimeoutException:
            return 499

    def answers(self) -> list[str]:
        """Asks what must always be answered the same; waits while the queue is full."""
        texts = []
        for parts in ([], [url_part(*self._files[0])], [url_part(*self._files[1]), url_part(*self._files[2])]):
            while (response := self._http.post(COMPLETIONS, json=body_of(*parts))).status_code == 429:
                time.sleep(0.2)
            assert response.status_code == 200, response.text
            texts.append(response.json()["choices"][0]["message"]["content"])
        return texts

    def health(self) -> dict:
        """Returns /health."""
        return self._http.get("/health").json()

    def _post(self, path: str, body: dict) -> int:
        response = self._http.post(path, json=body)
        message = response.json().get("error", {"message": "none"})["message"]
        assert message and "\n" not in message, response.text
        return response.status_code


def schema_cases(address: str, count: int, seed: int) -> list[Case]:
    """Returns about `count` requests to all endpoints, valid ones and invalid ones."""
    schema, cases = schemathesis.openapi.from_url(f"{address}/openapi.json"), []
    operations = [operation.ok() for operation in schema.get_all_operations()]
    for operation in operations:
        for mode in GenerationMode:
            # /v1/chat/completions has most of the parameters.
            share = (
                count * (0.5 if operation.path == COMPLETIONS else 0.5 / (len(operations) - 1)) / len(GenerationMode)
            )

            @settings(
                max_examples=max(1, round(share)),
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def collect(case: Case) -> None:
                cases.append(case)

            try:
                collect()
            except Exception as error:  # an endpoint without parameters has no invalid requests
                print(f"{operation.method} {operation.path}: no {mode.value} requests: {type(error).__name__}")
    random.Random(seed).shuffle(cases)
    return cases


def memory_of(pid: int) -> int:
    """Returns the resident bytes of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    with Path(f"/proc/{pid}/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") + sum(
            memory_of(int(child)) for child in children
        )


def send_all(process: subprocess.Popen, requests: Requests, cases: list[Case], count: int, seed: int) -> list[str]:
    """Sends all requests, four at a time; returns what was wrong."""
    order, wrong = random.Random(seed), []
    expected, statuses = requests.answers(), collections.Counter()
    others = [requests.broken_media] * 5 + [requests.hang_up] * 4 + [requests.large_body]
    work: list[tuple[str, Callable[[], int]]] = [("schema", lambda case=case: requests.case(case)) for case in cases]
    work += [(other.__name__, other) for other in order.choices(others, k=max(0, count - len(cases)))]
    order.shuffle(work)
    memory, block, began = [], 25, time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        for first in range(0, len(work), block):
            part = work[first : first + block]
            for (kind, _), found in zip(part, [pool.submit(call) for _, call in part], strict=True):
                try:
                    statuses[kind, found.result()] += 1
                    if found.result() not in DOCUMENTED:
                        wrong.append(f"{kind}: status {found.result()}")
                except Exception as error:
                    wrong.append(f"{kind}: {type(error).__name__}: {error}")
            if requests.answers() != expected:
                wrong.append(f"after {first + block} requests: other answers than before")
            if process.poll() is not None:
                return [*wrong, f"the server has ended with {process.returncode}"]
            memory.append(memory_of(process.pid))
    print(f"{len(work)} requests in {time.monotonic() - began:.0f} s")
    for (kind, status), number in sorted(statuses.items()):
        print(f"  {kind}: {number} x {status}")
    middle = memory[len(memory) // 2 :]
    third = max(1, len(middle) // 3)
    growth = sum(middle[-third:]) / sum(middle[:third]) - 1
    sizes = ", ".join(f"{size / 1e6:.0f} MB" for size in (memory[0], middle[0], memory[-1]))
    print(f"memory at the start, in the middle and at the end: {sizes}; {growth:+.1%} in the last half")
    if growth > 0.05:
        wrong.append(f"memory grew by {growth:.1%}")
    deadline = time.monotonic() + TIMEOUT
    while requests.health()["pending"] and time.monotonic() < deadline:
        time.sleep(0.1)
    if requests.health() != {"status": "ok", "pending": 0}:
        wrong.append(f"after all requests: {requests.health()}")
    return wrong


def stop_twice(process: subprocess.Popen, address: str) -> list[str]:
    """Sends SIGTERM while an answer streams, then again; returns what was wrong."""
    with httpx.stream("POST", f"{address}{COMPLETIONS}", json=body_of(max_tokens=900, stream=True)) as response:
        lines = response.iter_lines()
        json.loads(next(lines).removeprefix("data: "))
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        running = process.poll() is None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            return ["the server runs 10 s after the second SIGTERM"]
    return [] if running else ["the first SIGTERM ended the server before its answer"]


def main() -> int:
    """Returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_server(Path(name)) as (process, address):
        requests = Requests(address, clip_in(Path(name)), options.seed)
        cases = schema_cases(address, round(options.requests * 0.7), options.seed)
        wrong = send_all(process, requests, cases, options.requests, options.seed)
        wrong += stop_twice(process, address) if process.poll() is None else []
        log = (Path(name) / "log").read_text()
    if log:
        wrong.append(f"the server's log:\n{log[-5000:]}")
    print("\n".join(wrong) or "nothing wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
