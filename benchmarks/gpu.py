"""Measures on one accelerator what no CPU can tell, within nine minutes and without a network.

python -m benchmarks.gpu --out DIR         # needs pip install -e '.[cuda]'; writes DIR/results.jsonl and DIR/results.md
python -m benchmarks.gpu --out DIR --dry   # the same at tiny sizes on any machine, in about two minutes

- attention: the flash kernel of the platform against plain XLA, on packed rows, forward and backward
- lora, full: a training step of the 9B model with LoRA, and of the model with the 3B decoder, with MFU
- answers: decoding of the 9B model at batch 1 and 8 against the memory bandwidth, prefill, time to the first token
- loader: how many clips of 720p a second the training loader reads on this host

Weights are random. Each group runs in its own process, so that it starts with an empty device, and writes each result
as soon as it has it; a group that fails or is out of time loses only its own results. `of peak` is the share of the
chip's FLOP/s (MFU), or for decoding of its memory bandwidth, by planning/hardware.py.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.generate import clip
from benchmarks.jax_side import JaxSide
from benchmarks.loader import clips_per_second, write_clips
from benchmarks.train_step import step_config
from benchmarks.video_batch import video_batch
from benchmarks.workers import line, processor
from configs import mid, omnivinci_9b, tiny
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.index import build_index
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Prompt, Request, Sampling
from omnivinci_jax.models.attention import attention
from omnivinci_jax.models.attention_kernels import choose_implementation
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.planning.hardware import chip_of
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import DataConfig, LoraConfig, TrainConfig, from_mapping
from tests.tiny import NoEnd

SECONDS = 540
HEADS = ("group", "what", "time", "rate", "of peak")


@dataclass(frozen=True)
class Size:
    """What is measured: `slots` of a packed row, the models, decoding batches, prefill lengths, frames of a clip."""

    slots: int
    heads: tuple[int, int, int]  # query heads, key heads, width
    lora: TrainConfig
    full: TrainConfig
    model: OmniVinciConfig
    batches: tuple[int, ...]
    new_tokens: int
    prefills: tuple[int, ...]
    frames: int
    clips: int


def real_size() -> Size:
    """The published model."""
    lora = replace(step_config("7b", "bfloat16"), frozen=TrainConfig().frozen, lora=LoraConfig(rank=16))
    full = step_config("3b", "bfloat16")
    model = omnivinci_9b.model_config()
    return Size(8192, (28, 4, 128), lora, full, model, (1, 8), 64, (8192, 32_000), 16, 48)


def dry_size() -> Size:
    """The demo's model."""
    settings = from_mapping(TrainConfig, tiny.get_config())
    data = replace(settings.data, groups=1, capacity=Capacity(rows=1, slots=256, tiles=16, windows=2, clips=1))
    full = replace(settings, data=data, align_weight=0.0, frozen=(*TrainConfig().frozen, "omni_align/.*"))
    lora = replace(full, frozen=TrainConfig().frozen, lora=LoraConfig(rank=4))
    return Size(256, (4, 2, 16), lora, full, tiny.model_config(), (1, 2), 8, (300,), 4, 2)


def seconds(function: Callable[[], Any], runs: int = 5) -> float:
    """Returns the median time of `function` after one run that compiles."""
    jax.block_until_ready(function())
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def result(what: str, taken: float, rate: float, unit: str, of_peak: float | None = None) -> dict[str, Any]:
    """One row of the results; `taken` in seconds."""
    return {"what": what, "seconds": taken, "rate": rate, "unit": unit, "of_peak": of_peak}


def measure_attention(size: Size) -> Iterator[dict[str, Any]]:
    """Times causal attention on a row of packed segments."""
    heads, key_heads, width = size.heads
    lengths = np.array([1, 2, 3, 10]) * size.slots // 16
    segments = jnp.asarray(np.repeat([1, 2, 3, 4], lengths))[None]
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (1, size.slots, count, width), jnp.bfloat16)
        for key, count in zip(keys, (heads, key_heads, key_heads), strict=True)
    )
    flops = 2 * heads * width * float((lengths**2).sum())  # two products, over half of each segment's square
    chip = chip_of(jax.devices()[0].device_kind)
    for name in dict.fromkeys(("xla", choose_implementation("auto", jax.devices()[0].platform))):
        forward = jax.jit(partial(attention, causal=True, segment_ids=segments, implementation=name))
        backward = jax.jit(jax.grad(lambda *qkv, f=forward: f(*qkv).astype(jnp.float32).sum(), (0, 1, 2)))
        for what, function, work in ((f"{name}", forward, flops), (f"{name}, backward", backward, 3.5 * flops)):
            taken = seconds(partial(function, q, k, v))
            of_peak = work / taken / chip.flops if chip else None
            yield result(f"{what}, {size.slots:,} slots", taken, work / taken / 1e12, "TFLOP/s", of_peak)


def measure_step(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Times a training step."""
    capacity = config.data.capacity
    with tempfile.TemporaryDirectory() as folder:
        side = JaxSide(config, video_batch(config.model, capacity), Path(folder))
        taken, flops = seconds(side.train_step), side.flops()
        of_peak = flops.step / taken / flops.peak if flops.peak else None
        trained = "LoRA" if config.lora.rank else "all but the encoders"
        what = f"training step ({trained}), decoder of width {config.model.text.hidden_size}, {config.dtype}"
        yield result(what, taken, capacity.rows * capacity.slots / taken, "slots/s", of_peak)


def measure_answers(size: Size) -> Iterator[dict[str, Any]]:
    """Times decoding, prefill and the first token."""
    model = OmniVinci(size.model, Compute(jnp.bfloat16, attention="xla"))
    engine = Engine(model, random_params(size.model), NoEnd())
    chip = chip_of(jax.devices()[0].device_kind)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((engine.weights.layers, engine.weights.rest["llm"])))
    rng = np.random.default_rng(0)

    def text(length: int) -> Prompt:
        tokens = rng.integers(0, size.model.text.vocab_size, length, np.int32)
        return Prompt(tokens, np.zeros((0, size.model.text.hidden_size), model.compute.dtype), tokens.astype(np.int64))

    def answer(batch: int, length: int, new: int) -> tuple[float, float]:
        """Returns the seconds to the first token of all answers, and those of the other tokens."""
        requests = [Request(text(length), Sampling(max_new_tokens=new)) for _ in range(batch)]
        began, first = time.perf_counter(), None
        for _ in engine.run(requests):
            if first is None and all(request.tokens for request in requests):
                first, before = time.perf_counter(), sum(len(request.tokens) for request in requests)
        assert first is not None
        return first - began, (time.perf_counter() - first) / max(1, batch * new - before)

    for batch in size.batches:
        answer(batch, 128, size.new_tokens)
        token = float(np.median([answer(batch, 128, size.new_tokens)[1] for _ in range(3)]))
        of_peak = weights / (token * batch) / chip.memory_bandwidth if chip else None
        yield result(f"decoding, batch {batch}", token * batch, 1 / token, "tokens/s", of_peak)
    for length in size.prefills:
        answer(1, length, 1)
        taken = float(np.median([answer(1, length, 1)[0] for _ in range(3)]))
        yield result(f"prefill of {length:,} tokens", taken, length / taken, "tokens/s")
    times = []
    for seed in range(4):
        packed = clip(size.model, size.frames, seed)
        began = time.perf_counter()
        prompt = engine.encode(packed.row, packed.tiles, packed.windows)
        for _ in engine.run([Request(prompt, Sampling(max_new_tokens=1))]):
            pass
        times.append(time.perf_counter() - began)
    taken = float(np.median(times[1:]))
    what = f"first token of a clip of {size.frames} frames with sound, {len(prompt):,} positions"
    yield result(what, taken, 1 / taken, "clips/s")


def random_params(config: OmniVinciConfig) -> dict:
    """Draws bfloat16 parameters on the device, one leaf at a time."""
    leaves, tree = jax.tree.flatten(abstract_params(config))

    @partial(jax.jit, static_argnums=1)
    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return 0.02 * jax.random.normal(key, shape, jnp.bfloat16)

    return tree.unflatten([draw(jax.random.key(index), leaf.shape) for index, leaf in enumerate(leaves)])


def measure_loader(size: Size) -> Iterator[dict[str, Any]]:
    """Times the training loader on clips of 720p."""
    flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags
    processor = Processor(OmniVinciConfig(), Tokenizer(Path(mid.TOKENIZER)))
    capacity = Capacity(rows=1, slots=8192, tiles=80, windows=4, clips=4)
    with tempfile.TemporaryDirectory() as folder:
        index = build_index(Jsonl(write_clips(Path(folder), size.clips)), processor, capacity, "skip", quiet=True)
        for workers in dict.fromkeys((1, max(1, (os.cpu_count() or 1) // 2))):
            settings = DataConfig(groups=1, capacity=capacity, workers=workers)
            rate = clips_per_second(index, processor, settings, 2 + 2 * workers)
            yield result(f"loader, {workers} worker(s), clips of 10 s at 720p", 1 / rate, rate, "clips/s")


GROUPS: dict[str, Callable[[Size], Iterator[dict[str, Any]]]] = {
    "attention": measure_attention,
    "lora": lambda size: measure_step(size.lora),
    "answers": measure_answers,
    "full": lambda size: measure_step(size.full),
    "loader": measure_loader,
}


def record(out: Path, row: dict[str, Any]) -> None:
    """Appends a row to results.jsonl and writes results.md anew."""
    with (out / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    rows = [json.loads(text) for text in (out / "results.jsonl").read_text().splitlines()]
    lines = [*(row["machine"] + "\n" for row in rows if "machine" in row), line(*HEADS), line(*["---"] * len(HEADS))]
    for row in rows:
        if "machine" in row:
            continue
        if "error" in row:
            lines.append(line(row["group"], row["error"], "", "", ""))
            continue
        of_peak = "" if row["of_peak"] is None else f"{row['of_peak']:.1%}"
        rate = f"{row['rate']:,.4g} {row['unit']}"
        lines.append(line(row["group"], row["what"], f"{row['seconds'] * 1e3:,.4g} ms", rate, of_peak))
    (out / "results.md").write_text("\n".join(lines) + "\n")
    print(lines[-1], flush=True)


def run_group(name: str, out: Path, size: Size) -> None:
    """Measures one group, in its own process."""
    if not (out / "results.md").exists():
        machine = f"{jax.devices()[0].device_kind}; {processor()}; jax {jax.__version__}; {datetime.date.today()}"
        record(out, {"machine": machine})
    try:
        for row in GROUPS[name](size):
            record(out, {"group": name} | row)
    except Exception as error:  # the other groups go on
        record(out, {"group": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
        raise


def main() -> None:
    """Runs the groups one after the other, each for as long as time is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on any machine")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all groups")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # this is a group's own process
    options = parser.parse_args()
    if options.here:
        run_group(*options.groups, options.out, dry_size() if options.dry else real_size())
        return
    if (options.out / "results.jsonl").exists():
        sys.exit(f"{options.out}: has results already; name another folder")
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.out / "programs"))
    end, failed = time.monotonic() + options.seconds, []
    for name in options.groups:
        command = [sys.executable, "-m", "benchmarks.gpu", "--here", "--groups", name, "--out", str(options.out)]
        try:
            done = subprocess.run([*command, *["--dry"] * options.dry], timeout=max(1.0, end - time.monotonic()))
            failed += [name] * (done.returncode != 0)
        except subprocess.TimeoutExpired:
            failed.append(name)
            record(options.out, {"group": name, "error": "out of time"})
    if failed:
        sys.exit(f"incomplete: {', '.join(failed)}")


if __name__ == "__main__":
    main()
