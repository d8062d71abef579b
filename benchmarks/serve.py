"""The server under load: tokens per second at 1 to 16 requests, and how a long video disturbs the others.

python -m benchmarks.serve --plot docs/serve_load.png        # configs/mid.py in float32; needs torch

Each request is one HTTP stream from the server in another process. `text` asks with about 40 tokens and gets 128;
`known clips` asks about clips of 8 frames with sound that the server has encoded before, `new clips` about others;
both get 64 tokens. Every question is new. transformers' `generate` answers as many text prompts in one batch, with the
same weights; its answers must be the same. Then 8 streams of text run while a video of 64 frames with sound is read in,
from its request to its first token.
"""

import argparse
import asyncio
import datetime
import itertools
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.workers import Worker, line, processor, use_cpu_allocator
from configs import mid
from omnivinci_jax.av_world.encode import write_media

CONFIG = mid.model_config().replace(num_video_frames=64)
TEXT_TOKENS, CLIP_TOKENS = 128, 64
OTHERS, IDLE_SECONDS = 8, 20.0
KINDS = ("text", "known clips", "new clips")
PARTS = ("rates", "reading")


def make_side(name: str, folder: Path) -> Any:
    """Creates a side, in its own process; the PyTorch side saves its weights in `folder` for the server."""
    if name == "torch":
        from benchmarks.generate_torch import TorchSide as Side
    else:
        from benchmarks.serve_jax import ServerSide as Side
    return Side(CONFIG, folder)


class Stream(NamedTuple):
    """A streamed answer: its text, its tokens, and when each event came."""

    text: str
    tokens: int
    times: list[float]


class Client:
    """Asks the server; every question has its own index."""

    def __init__(self, address: str, folder: Path):
        """`folder` receives the clips that the questions are about."""
        self._http = httpx.AsyncClient(base_url=address, timeout=None, limits=httpx.Limits(max_connections=None))
        self._folder, self.asked, self.clips = folder, 0, 0

    def question(self) -> str:
        """Returns a question that was not asked before."""
        self.asked += 1
        return f"Question {self.asked:04}: what does a listener hear first, and what does a viewer see after it?"

    def clip(self, frames: int) -> str:
        """Writes a new clip of moving blocks with noise, two frames per second; returns its URL."""
        self.clips += 1
        path, rng = self._folder / f"{self.clips:04}.mp4", np.random.default_rng(self.clips)
        picture = rng.integers(0, 256, (28, 28, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        pictures = np.stack([np.roll(picture, (9 * t, 15 * t), (0, 1)) for t in range(frames)])
        sound = rng.normal(scale=0.1, size=(1, frames * 8000)).astype(np.float32)
        write_media(path, pictures, 2, sound, 16_000)
        return path.as_uri()

    async def ask(self, question: str, clip: str | None, tokens: int, times: list[float] | None = None) -> Stream:
        """Streams one answer; `times` receives the time of each event at once."""
        content: list[dict] = [{"type": "video_url", "video_url": {"url": clip}}] if clip else []
        content.append({"type": "text", "text": question})
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": tokens, "stream": True}
        body["stream_options"] = {"include_usage": True}
        text, usage, times = "", {}, [] if times is None else times
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for row in response.aiter_lines():
                if not row.startswith("data: {"):
                    continue
                event = json.loads(row[6:])
                if "error" in event or response.status_code != 200:
                    raise SystemExit(f"the server answers: {row}")
                usage = event["usage"] or {}
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    if choice["delta"] and "role" not in choice["delta"]:
                        times.append(time.perf_counter())
        return Stream(text, usage["completion_tokens"], times)

    async def together(self, questions: list[str], clips: list[str | None], tokens: int) -> tuple[float, list[Stream]]:
        """Asks all questions at once; returns tokens per second and the answers."""
        began = time.perf_counter()
        pairs = zip(questions, clips, strict=True)
        answers = await asyncio.gather(*(self.ask(question, clip, tokens) for question, clip in pairs))
        return sum(answer.tokens for answer in answers) / (time.perf_counter() - began), answers


async def throughput(client: Client, kind: str, count: int) -> tuple[float, list[str], list[Stream]]:
    """Measures tokens per second of `count` requests at once; also returns questions and answers."""
    questions = [client.question() for _ in range(count)]
    clips: list[str | None] = [None] * count
    if kind != "text":
        clips = [client.clip(8) for _ in range(count)]
        if kind == "known clips":
            await client.together([client.question() for _ in range(count)], clips, 1)
    rate, answers = await client.together(questions, clips, TEXT_TOKENS if kind == "text" else CLIP_TOKENS)
    return rate, questions, answers


class Reading(NamedTuple):
    """The others' milliseconds between events (p95) and tokens per second, idle and while a video is read in."""

    idle_gap: float
    gap: float
    idle_rate: float
    rate: float
    first: float
    encoding: float
    prefill: float

    @property
    def allowed(self) -> float:
        """The gap that the aim allows, in milliseconds."""
        return self.idle_gap + 1.5 * max(self.encoding, self.prefill)


async def read_video(client: Client, server: Worker) -> Reading:
    """Measures how a video that is read in disturbs streams of text."""
    warm, clip = (client.clip(CONFIG.num_video_frames) for _ in range(2))
    await client.ask(client.question(), warm, 1)
    times: list[list[float]] = [[] for _ in range(OTHERS)]
    streams = [
        asyncio.create_task(client.ask(client.question(), None, CONFIG.text.max_position_embeddings // 8, events))
        for events in times
    ]
    await asyncio.sleep(3)  # all are answered in full chunks
    begin = time.perf_counter()
    await asyncio.sleep(IDLE_SECONDS)
    server.ask("pieces")
    middle = time.perf_counter()
    answer = await client.ask(client.question(), clip, 1)
    end = answer.times[0]
    encoding, prefill = server.ask("pieces")
    if any(stream.done() for stream in streams):
        raise SystemExit("a stream ended too early")
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    per_event = server.ask("tokens_between", begin, middle), server.ask("tokens_between", middle, end)
    idle, busy = (gaps(times, *span) for span in ((begin, middle), (middle, end)))
    rates = per_event[0] / (middle - begin), per_event[1] / (end - middle)
    return Reading(
        float(np.percentile(idle, 95)) * 1e3, float(np.percentile(busy, 95)) * 1e3, *rates, end - middle,
        max(encoding) * 1e3, max(prefill) * 1e3,
    )  # fmt: skip


def gaps(times: list[list[float]], begin: float, end: float) -> np.ndarray:
    """Returns the times between successive events of each stream that end between two moments."""
    found = [
        later - earlier for events in times for earlier, later in itertools.pairwise(events)
        if begin <= later <= end
    ]  # fmt: skip
    return np.array(found)


def draw(rates: dict[str, dict[int, float]], batched: float, count: int, path: Path) -> None:
    """Plots tokens per second against the number of requests."""
    figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for kind, row in rates.items():
        axes.plot(list(row), list(row.values()), "o-", label=kind)
    axes.plot([count], [batched], "s", color="0.5", label=f"transformers, a batch of {count} texts")
    axes.set(xscale="log", xlabel="requests at once", ylabel="tokens per second, all together", ylim=(0, None))
    counts = list(next(iter(rates.values())))
    axes.set_xticks(counts, map(str, counts))
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


async def measure_rates(options: argparse.Namespace, client: Client, torch: Worker, server: Worker) -> None:
    """Measures tokens per second at each number of requests; prints and plots them."""
    batched = await compare(options.turns, client, torch, server)
    head = ("requests at once", *map(str, options.requests))
    print(f"\n{line(*head)}\n{line(*['---'] * len(head))}", flush=True)
    rates: dict[str, dict[int, float]] = {}
    for kind in KINDS:
        await throughput(client, kind, max(options.requests))  # warm up
        rates[kind] = {
            count: float(np.median([(await throughput(client, kind, count))[0] for _ in range(options.turns)]))
            for count in options.requests
        }
        print(line(f"{kind}, tokens/s", *(f"{rate:.0f}" for rate in rates[kind].values())), flush=True)
    print()
    for kind in KINDS:
        print(f"{kind}: 8 at once are {rates[kind][8] / rates[kind][1]:.2f}x one at a time", flush=True)
    if options.plot:
        draw(rates, batched, 8, options.plot)


async def compare(turns: int, client: Client, torch: Worker, server: Worker) -> float:
    """Answers 8 texts at once on both sides; prints the ratio, and returns tokens per second of transformers."""
    theirs, ours, same = [], [], 0
    for turn in range(turns + 1):  # the first warms up
        rate, questions, answers = await throughput(client, "text", 8)
        batched, found = torch.ask("batched", server.ask("prompts", questions), TEXT_TOKENS)
        if turn:
            ours.append(rate)
            theirs.append(batched)
            texts = server.ask("texts", found)
            same += sum(text == answer.text for text, answer in zip(texts, answers, strict=True))
    ratio, batched = np.median(np.array(ours) / np.array(theirs)), float(np.median(theirs))
    print(
        f"8 texts: transformers' generate {batched:.0f} tokens/s, the server {np.median(ours):.0f}, {ratio:.2f}x; "
        f"{same} of {8 * turns} answers are the same",
        flush=True,
    )
    return batched


async def measure_reading(turns: int, client: Client, server: Worker) -> None:
    """Measures how a video that is read in disturbs others; prints a row for each turn."""
    cells = (
        "gap idle",
        "reading",
        "allowed",
        "tokens/s idle",
        "reading",
        "share",
        "encoding",
        "prefill",
        "first token",
    )
    print(f"\n{line(*cells)}\n{line(*['---'] * len(cells))}", flush=True)
    for _ in range(turns):
        reading = await read_video(client, server)
        print(
            line(
                f"{reading.idle_gap:.0f} ms", f"{reading.gap:.0f} ms", f"{reading.allowed:.0f} ms",
                f"{reading.idle_rate:.0f}", f"{reading.rate:.0f}", f"{reading.rate / reading.idle_rate:.0%}",
                f"{reading.encoding:.0f} ms", f"{reading.prefill:.0f} ms", f"{reading.first:.1f} s",
            ),
            flush=True,
        )  # fmt: skip


async def measure(options: argparse.Namespace, torch: Worker, server: Worker, folder: Path) -> None:
    """Runs the parts that are asked for."""
    client = Client(server.ask("address"), folder)
    if "rates" in options.parts:
        await measure_rates(options, client, torch, server)
    if "reading" in options.parts:
        await measure_reading(options.turns, client, server)


def main() -> None:
    """Measures, prints the tables and plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=(1, 2, 4, 8, 16), help="with 1 and 8")
    parser.add_argument("--turns", type=int, default=3, help="repetitions of each measurement; medians count")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--plot", type=Path, help="PNG to write")
    options = parser.parse_args()
    tunables = use_cpu_allocator()
    with tempfile.TemporaryDirectory() as folder:
        torch, server = (Worker(make_side, name, Path(folder), daemon=name == "torch") for name in ("torch", "server"))
        others = ", ".join(f"{name} {version(name)}" for name in ("transformers", "fastapi", "uvicorn"))
        machine = f"{processor()}; {tunables}; {datetime.date.today()}"
        print(f"configs/mid.py, float32; {machine}; {torch.version}, {server.version}, {others}\n")
        try:
            asyncio.run(measure(options, torch, server, Path(folder)))
        finally:
            server.ask("stop")
            server.close()


if __name__ == "__main__":
    main()
