"""Compares a training step of the mid-size model with the same model built from transformers' PyTorch modules.

python -m benchmarks.train_step                        # configs/mid.py in float32; needs torch, takes ten minutes
python -m benchmarks.train_step --dtype bfloat16

Weights, batch (two rows of 1,024 slots, each a video with sound and text) and update (gradient clipping, AdamW) are the
same. The benchmark first compares losses and gradients, then times each program. `forward` ends at the loss. A part
gets the same inputs as in the whole model, and its `backward` includes its forward pass. "The rest of the step" is the
time of the step minus that of its parts.

The two sides run in their own processes on the same cores and take turns, so that their threads do not compete and
changes in the machine's speed affect both; a ratio is the median over the turns. Both use the allocator settings of
launch/xla_flags.sh; without them, both spend much of their time on page faults. planning/flops.py counts model FLOPs.

With `--decoder 3b` or `7b` (on a GPU) only JAX is timed, with the published towers. With 7b, the decoder is frozen:
AdamW's float32 state for all parameters would exceed one device's memory.
"""

import argparse
import dataclasses
import datetime
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.video_batch import video_batch
from benchmarks.workers import Worker, line, processor, use_cpu_allocator
from configs import mid, omnivinci_9b
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import TrainConfig, from_mapping

PARTS = ("vision tower", "sound tower", "decoder", "head and loss")
PROGRAMS = ("forward", "train step", *(part + end for part in PARTS for end in ("", ", backward")), "optimizer")
BIG = Capacity(rows=1, slots=8192, tiles=128, windows=6, clips=1)  # 4,096 vision and 2,250 audio tokens
WARMUP = 1
# Largest allowed relative difference of losses, and of gradients (for each leaf, norm of the difference over norm).
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (1e-2, 1e-1)}


def step_config(decoder: str, dtype: str) -> TrainConfig:
    """Returns the run's configuration, without OmniAlignNet, which the PyTorch side does not have."""
    if decoder == "mid":
        config, frozen = from_mapping(TrainConfig, mid.get_config()), ()
    else:
        config = from_mapping(TrainConfig, omnivinci_9b.get_config(decoder))
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, groups=1, capacity=BIG))
        frozen = ("llm/.*",) if decoder == "7b" else ()
    frozen = (*TrainConfig().frozen, "omni_align/.*", *frozen)
    return dataclasses.replace(config, dtype=dtype, align_weight=0.0, frozen=frozen)


def make_side(side: str, config: TrainConfig, folder: Path) -> Any:
    """Creates a side, in its own process; the sides exchange files in `folder`."""
    if side == "torch":
        from benchmarks.torch_side import TorchSide as Side
    else:
        from benchmarks.jax_side import JaxSide as Side
    return Side(config, video_batch(config.model, config.data.capacity), folder)


def compare(torch: Worker, jax: Worker, dtype: str) -> None:
    """Prints the differences of losses and gradients; exits if they exceed the tolerances."""
    loss_tolerance, gradient_tolerance = TOLERANCES[dtype]
    expected = torch.ask("gradients")
    loss, distances = jax.ask("gradients")
    # In exact arithmetic this gradient is zero, because softmax ignores a constant added to the scores of all keys.
    del distances["vision_tower/layers/self_attn/k_proj/bias"]
    worst = max(distances, key=distances.get)
    print(
        f"loss {loss:.6f}, torch {expected:.6f}; gradients of {len(distances)} leaves within {distances[worst]:.1e} "
        f"of torch's ({worst})",
        flush=True,
    )
    if abs(loss - expected) > loss_tolerance * expected or distances[worst] > gradient_tolerance:
        raise SystemExit("losses or gradients differ by more than rounding: nothing is timed")


def time_in_turns(workers: list[Worker], program: str, turns: int) -> np.ndarray:
    """Returns the seconds of each worker in each turn, [turns, workers], after warm-up turns.

    In each turn a program runs twice and only the second run is timed: the machine may have reclaimed a side's memory
    while the other ran, which does not happen between the steps of a training run.
    """
    seconds = [[(w.seconds(program), w.seconds(program))[1] for w in workers] for _ in range(WARMUP + turns)]
    return np.array(seconds[WARMUP:])


def table(workers: list[Worker], turns: int) -> Iterator[str]:
    """Yields the lines of the table: medians, and with two sides the median over the turns of torch / jax."""
    compared, medians = len(workers) > 1, {}
    yield line("seconds", *(worker.version for worker in workers), *["ratio"] * compared)
    yield line(*["---"] * (1 + len(workers) + compared))
    for program in PROGRAMS:
        seconds = time_in_turns(workers, program, turns)
        medians[program] = np.median(seconds, axis=0)
        ratio = [np.median(seconds[:, 0] / seconds[:, 1])] if compared else []
        yield line(program, *(f"{median:.3f}" for median in medians[program]), *(f"{x:.2f}" for x in ratio))
    parts = sum(medians[name] for name in ("optimizer", *(f"{part}, backward" for part in PARTS)))
    rest = medians["train step"] - parts
    yield line("the rest of the step", *(f"{seconds:.3f}" for seconds in rest), *[""] * compared)
    flops = workers[-1].ask("flops")
    for program, work in (("forward", flops.forward), ("train step", flops.step)):
        rates = work / medians[program]
        of_peak = f" ({rates[-1] / flops.peak:.1%} MFU)" if flops.peak else ""
        cells = [f"{rate / 1e9:,.0f}" for rate in rates]
        yield line(f"{program}, model GFLOP/s", *cells[:-1], cells[-1] + of_peak, *[""] * compared)


def main() -> None:
    """Compares the sides, times them in turns, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoder", choices=("mid", "3b", "7b"), default="mid")
    parser.add_argument("--dtype", choices=TOLERANCES, default="float32")
    parser.add_argument("--turns", type=int, default=5, help="timed runs of each program")
    options = parser.parse_args()
    tunables = use_cpu_allocator()
    config = step_config(options.decoder, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        sides = ("torch", "jax") if options.decoder == "mid" else ("jax",)
        workers = [Worker(make_side, side, config, Path(folder)) for side in sides]
        if len(workers) > 1:
            compare(*workers, options.dtype)
        print(f"\n{options.decoder}, {options.dtype}; {processor()}; {tunables}; {datetime.date.today()}\n")
        for row in table(workers, options.turns):
            print(row, flush=True)


if __name__ == "__main__":
    main()
