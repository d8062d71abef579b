"""Decoding of the mid-size model (configs/mid.py) in float32 and in quantized weights.

python -m benchmarks.quantized

Every kind decodes greedy tokens after a prompt of 128 random tokens, with random weights and its output head quantized
too. The kinds take turns; numbers are medians, ratios are medians over the turns. `read` is what a step reads: the
decoder's layers and its head.
"""

import argparse
import datetime
import time

import jax
import numpy as np

from benchmarks.workers import line, processor
from configs import mid
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Prompt, Request, Sampling
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.quantize.recipes import RECIPES, Recipe
from tests.tiny import NoEnd, quantized_params, random_params

CONFIG = mid.model_config()
MODULES = ("llm/(layers/.*|lm_head)",)


def seconds_per_token(engine: Engine, seed: int, new: int, rows: int) -> float:
    """Returns the seconds of a decode step of `rows` answers of `new` tokens."""
    random, requests = np.random.default_rng(seed), []
    for _ in range(rows):
        tokens = random.integers(0, CONFIG.text.vocab_size, 128).astype(np.int32)
        prompt = Prompt(tokens, np.zeros((0, CONFIG.text.hidden_size), np.float32), tokens.astype(np.int64))
        requests.append(Request(prompt, Sampling(max_new_tokens=new)))
    first = 0.0
    for _ in engine.run(requests):
        first = first or (time.perf_counter() if all(request.tokens for request in requests) else 0.0)
    return (time.perf_counter() - first) / (new - 1)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=("w8a8", "w4a16"), choices=sorted(RECIPES))
    parser.add_argument("--rows", type=int, default=1, help="answers at once")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    params = random_params(CONFIG)
    engines = {"float32": Engine(OmniVinci(CONFIG), params, NoEnd())}
    for kind in options.kinds:
        quantized = quantized_params(params, Recipe(kind, modules=MODULES), CONFIG)
        engines[kind] = Engine(OmniVinci(CONFIG), quantized, NoEnd())
    del params
    times: dict[str, list[float]] = {kind: [] for kind in engines}
    for turn in range(options.turns + 1):
        for kind, engine in engines.items():
            seconds = seconds_per_token(engine, turn, options.tokens, options.rows)
            if turn:  # the first one compiles
                times[kind].append(seconds)
    print(f"configs/mid.py, {options.rows} rows; {processor()}; jax {jax.__version__}; {datetime.date.today()}\n")
    print(line("weights", "read", "ms a step", "times float32"))
    print(line(*["---"] * 4))
    for kind, engine in engines.items():
        read = (engine.weights.layers, engine.weights.rest["llm"]["lm_head"])
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(read)) / 2**20
        ratio = np.median(np.array(times["float32"]) / np.array(times[kind]))
        print(line(kind, f"{size:.1f} MiB", f"{np.median(times[kind]) * 1e3:.2f}", f"{ratio:.2f}"))


if __name__ == "__main__":
    main()
