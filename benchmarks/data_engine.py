"""Measures the data engine itself: 100,000 rows through all stages with models that answer at once.

python benchmarks/data_engine.py --folder DIR --rows 100000

A row is a segment of one clip with one question. Functions that return at once replace the reading of media, the
network and the models, so what remains is the engine: stages, requests in OpenAI's form, stored results, filters,
near-duplicates and files. The second pass resumes the finished run. Prints memory on the way. Run nothing else
meanwhile.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import httpx

from omnivinci_jax.data_engine import engine as engine_module
from omnivinci_jax.data_engine import stages
from omnivinci_jax.data_engine.client import Attachment
from omnivinci_jax.data_engine.engine import Engine
from omnivinci_jax.data_engine.output import Output
from omnivinci_jax.data_engine.prompts import read_prompts
from omnivinci_jax.data_engine.report import counts_table
from omnivinci_jax.data_engine.settings import EngineConfig, ModelConfig
from omnivinci_jax.data_engine.store import Store

STAGES = 2 + len(stages.STAGES)  # probe and cut, too
_WORDS = ["the", "a", "man", "woman", "dog", "car", "house", "tree", "road", "lamp", "door", "walks", "sits", "after"]
_OPTIONS = ["a wooden box", "a copper bell", "a silver coin", "a paper bag"]


class Instant(httpx.AsyncBaseTransport):
    """Answers every request at once; counts them."""

    def __init__(self):
        self.requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answers a request by its role, which is the model's name."""
        self.requests += 1
        body = json.loads(await request.aread())
        text = _ANSWERS[body["model"]](body["messages"][0]["content"])
        usage = {"prompt_tokens": 500, "completion_tokens": 100}
        return httpx.Response(200, json={"choices": [{"message": {"content": text}}], "usage": usage})


def _vision(content: list) -> str:
    return f"A quiet room that is numbered {content[0]['image_url']['url']} on its wall."


def _corrected(content: str) -> str:
    drawn = random.Random(content)
    caption = f"{' '.join(drawn.choices(_WORDS, k=80))}."
    return json.dumps({"vision": ["A room."], "audio": ["A hum."], "caption": caption})


def _questions(content: str) -> str:
    question = {"question": "What is it that stands near the lamp in the room?", "options": _OPTIONS}
    return json.dumps({"questions": [question | {"answer": _OPTIONS[1], "reasoning": "It rings.", "kind": "object"}]})


_ANSWERS = {
    "vision": _vision,
    "audio": lambda content: "A low hum that goes on all the time.",
    "corrector": _corrected,
    "questioner": _questions,
    "judge": lambda content: "none of them",
}


def _attachment(file: Path, identity: tuple, clip: list[float], *_) -> Attachment:
    return Attachment((*identity, *clip), lambda: [{"type": "image_url", "image_url": {"url": f"data:{identity[0]}"}}])


def _probe(path: Path) -> dict:
    return {"sha256": path.stem, "seconds": 20.0, "keyframes": [0.0], "levels": [-20] * 20}


async def run(folder: Path, rows: int, out: Path, transport: Instant, log=print) -> tuple[Output, Store]:
    """Runs the engine over the first `rows` links, and prints memory on the way."""
    models = {role: ModelConfig(url="http://instant", model=role) for role in _ANSWERS}
    config = EngineConfig(**models, questions=1, tries=1, rows=64)
    prompts, store = read_prompts(), Store(out / "results.sqlite")
    engine = Engine(config, prompts, store, out, transport)
    started, count = time.perf_counter(), 0
    try:
        with Output(out, config, prompts) as output:
            async for video in engine.rows(folder):
                for row in video:
                    output.add(row)
                count += 1
                if count % max(rows // 5, 1) == 0:
                    log(f"{count:,} rows, {time.perf_counter() - started:.1f} s, {_megabytes()} MB", flush=True)
    finally:
        await engine.close()
    return output, store


@contextmanager
def instant_media() -> Iterator[None]:
    """Reads no media until the block ends."""
    readers = dict.fromkeys(("frames_of", "sound_of"), _attachment)
    with mock.patch.multiple(stages, **readers), mock.patch.object(engine_module, "probe", _probe):
        yield


def make_links(folder: Path, rows: int) -> None:
    """Makes `rows` files, in folders of a thousand."""
    for index in range(rows):
        path = folder / f"{index // 1000:04}" / f"{index:07}.mp4"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"-")


def _megabytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder, on a local disk")
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    videos, out = arguments.folder / "videos", arguments.folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    make_links(videos, arguments.rows)
    seconds = []
    with instant_media():
        for name in ("first", "resumed"):
            transport, started, cpu = Instant(), time.perf_counter(), time.process_time()
            output, store = asyncio.run(run(videos, arguments.rows, out, transport))
            seconds.append((time.perf_counter() - started, time.process_time() - cpu))
            print(f"{name}: {seconds[-1][0]:.1f} s, {seconds[-1][1]:.1f} CPU s, {transport.requests:,} requests")
            store.close()
    print(counts_table(output.counts, arguments.rows))
    size = os.path.getsize(out / "results.sqlite") >> 20
    for kind, values in (("wall", [one[0] for one in seconds]), ("CPU", [one[1] for one in seconds])):
        per_stage = 1000 * values[0] / arguments.rows / STAGES
        print(f"{kind}: {per_stage:.3f} ms a row and stage ({STAGES} stages); resumed in {values[1]:.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB, results.sqlite {size} MB")


if __name__ == "__main__":
    main()
