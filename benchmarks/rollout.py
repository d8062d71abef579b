"""A rollout of eight answers to one prompt, compared with the same eight rows without any reuse.

. launch/xla_flags.sh cpu; python -m benchmarks.rollout          # configs/mid.py in float32

The prompt is a clip of 32 frames with sound and a question of 32 tokens; each answer has 64 sampled tokens. A rollout
encodes the clip once, prefills one row and copies its keys and values to the others. The other side encodes and
prefills all eight rows, in the same batch of the same engine. Both must sample the same answers. The two take turns,
each turn with a new clip; numbers are medians.
"""

import argparse
import datetime
import time
from dataclasses import dataclass, field

import jax
import numpy as np

from benchmarks.generate import CONFIG, NEW, clip
from benchmarks.workers import line, processor
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import Request, Sampling
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.assemble import PackedRow
from tests.tiny import NoEnd, random_params

FRAMES, ANSWERS = 32, 8
HEADS = ("", "encode", "prefill", "decode", "rollout")


@dataclass
class Times:
    """Seconds of each part of a rollout, and its answers."""

    encode: float
    prefill: float
    decode: float
    answers: list[list[int]] = field(repr=False)

    @property
    def parts(self) -> tuple[float, ...]:
        """The parts, and their sum."""
        return self.encode, self.prefill, self.decode, self.encode + self.prefill + self.decode


def measure(engine: Engine, packed: PackedRow, encodings: int) -> Times:
    """Samples the answers; the clip is encoded and prefilled once, or once for each of them."""
    sampling, began = Sampling(temperature=1.0, top_p=0.99, max_new_tokens=NEW), time.perf_counter()
    prompts = [engine.encode(packed.row, packed.tiles, packed.windows) for _ in range(encodings)]
    encoded, prefilled = time.perf_counter(), 0.0
    requests = [Request(prompts[sample % encodings], sampling, sample) for sample in range(ANSWERS)]
    for _ in engine.run(requests):
        # All rows decode together once the last one is prefilled; some answer a few tokens before.
        if not prefilled and all(request.tokens for request in requests):
            prefilled = time.perf_counter()
    return Times(
        encoded - began, prefilled - encoded, time.perf_counter() - prefilled, [request.tokens for request in requests]
    )


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    engine = Engine(OmniVinci(CONFIG), random_params(CONFIG), NoEnd(), rows=ANSWERS, capacity=3072)
    turns: dict[int, list[Times]] = {1: [], ANSWERS: []}
    for turn in range(options.turns + 1):  # the first compiles
        packed = clip(CONFIG, FRAMES, turn)
        for encodings, measured in turns.items():
            measured.append(measure(engine, packed, encodings))
        if turns[1][-1].answers != turns[ANSWERS][-1].answers:
            raise SystemExit(f"turn {turn}: the answers differ")
    once, each = (np.array([times.parts for times in measured[1:]]) for measured in turns.values())
    print(f"configs/mid.py, float32; {processor()}; jax {jax.__version__}; {datetime.date.today()}")
    print(f"{ANSWERS} answers of {NEW} tokens, {FRAMES} frames, {len(clip(CONFIG, FRAMES, 0).row):,} positions\n")
    print(line(*HEADS))
    print(line(*["---"] * len(HEADS)))
    for name, times in (("one prefill", once), ("no reuse", each)):
        print(line(name, *(f"{value:.2f} s" for value in np.median(times, axis=0))))
    print(line("ratio", *(f"{value:.2f}" for value in np.median(each / once, axis=0))))


if __name__ == "__main__":
    main()
