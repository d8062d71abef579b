"""Answers about clips of 2 to 64 frames with sound, compared with transformers' PyTorch and the memory bandwidth.

python -m benchmarks.generate --plot docs/generate.png        # configs/mid.py in float32; needs torch

A prompt is a clip of two frames per second with sound, then a question of 32 tokens; the greedy answer has 64 tokens.
The benchmark measures the time from pixels and log-mel to the first token (towers and prefill), then tokens per second.
Both sides have the same weights and clips and must generate the same tokens. `second question` is the time to the first
token of another question about the same clip. The limit on tokens/s is the memory bandwidth divided by the bytes that
must be read for each token (the decoder's layers and head, the keys and values so far). The bandwidth is the best of
several sums of 512 MB on all cores, in the same run.

The two sides run in their own processes and take turns, each turn with a new clip; numbers are medians.
"""

import argparse
import datetime
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.video_batch import with_text
from benchmarks.workers import Worker, line, processor, use_cpu_allocator
from configs import mid
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.sequence.assemble import PackedRow
from omnivinci_jax.sequence.chat import Media
from omnivinci_jax.sequence.row import SoundSize, VideoSize, lay_out_media

FRAMES = (2, 4, 8, 16, 32, 64)
TEXT, NEW = 32, 64
HEADS = (
    "frames", "positions", "first token, torch", "jax", "ratio", "prefill ratio", "second question",
    "tokens/s, torch", "jax", "ratio", "limit", "of the limit",
)  # fmt: skip
CONFIG = mid.model_config().replace(num_video_frames=max(FRAMES))


class Times(NamedTuple):
    """One answer: its tokens, and the seconds for the towers, for prefill with the first token, and per later token."""

    tokens: list[int]
    encode: float
    prefill: float
    token: float


def clip(config: OmniVinciConfig, frames: int, seed: int, question: int = 0) -> PackedRow:
    """Returns a row with a clip of random pixels and log-mel and a question about it."""
    rng, seconds = np.random.default_rng(seed), frames / 2
    windows = -(-int(seconds * config.sampling_rate) // config.window_samples)
    times = tuple((np.arange(frames) / 2 + 0.25).tolist())
    size = VideoSize(tuple(range(frames)), times, seconds, SoundSize(seconds, windows))
    row = lay_out_media(Media("video", f"{seed}.mp4"), size, config)
    side, audio = config.vision.image_size, config.audio
    tiles = rng.integers(0, 256, (frames, side, side, 3), np.uint8)
    mel = rng.normal(size=(windows, audio.window_frames, audio.num_mel_bins)).astype(np.float32)
    asked = np.random.default_rng([seed, question]).integers(0, config.text.vocab_size, TEXT, np.int32)
    return PackedRow(0, 1, with_text(row, asked), tiles, mel)


def make_side(name: str, folder: Path) -> Any:
    """Creates a side, in its own process; the PyTorch side saves its weights in `folder` for the JAX side."""
    if name == "torch":
        from benchmarks.generate_torch import TorchSide as Side
    else:
        from benchmarks.generate_jax import JaxSide as Side
    return Side(CONFIG, folder)


def measure(torch: Worker, jax: Worker, frames: int, turns: int) -> dict[str, float]:
    """Returns medians over the turns; a ratio is the median over the turns of torch / jax."""
    for worker in (torch, jax):  # warm up: compile and start threads
        worker.ask("answer", frames, 0, NEW)
    jax.ask("second", frames, 0)
    measured = []
    for turn in range(1, turns + 1):
        theirs, ours = torch.ask("answer", frames, turn, NEW), jax.ask("answer", frames, turn, NEW)
        if theirs.tokens != ours.tokens:
            raise SystemExit(f"{frames} frames: the answers differ: {theirs.tokens} {ours.tokens}")
        measured.append(
            dict(
                torch_first=theirs.encode + theirs.prefill, jax_first=ours.encode + ours.prefill,
                first_ratio=(theirs.encode + theirs.prefill) / (ours.encode + ours.prefill),
                prefill_ratio=theirs.prefill / ours.prefill,
                second=jax.ask("second", frames, turn),
                torch_rate=1 / theirs.token, jax_rate=1 / ours.token, rate_ratio=theirs.token / ours.token,
            )
        )  # fmt: skip
    return {name: float(np.median([turn[name] for turn in measured])) for name in measured[0]}


def draw(rows: dict[int, dict[str, float]], path: Path) -> None:
    """Plots time to the first token and tokens per second against the number of frames."""
    figure, (first, rate) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    series = {name: [row[name] for row in rows.values()] for name in next(iter(rows.values()))}
    first.loglog(list(rows), series["torch_first"], "s--", color="0.5", label="transformers' PyTorch")
    first.loglog(list(rows), series["jax_first"], "o-", label="OmniVinci in JAX")
    first.loglog(list(rows), series["second"], "o:", color="tab:blue", label="a second question")
    first.set(xlabel="frames (with sound)", ylabel="seconds to the first token")
    rate.semilogx(list(rows), series["limit"], "k:", label="memory bandwidth")
    rate.semilogx(list(rows), series["jax_rate"], "o-", label="OmniVinci in JAX")
    rate.semilogx(list(rows), series["torch_rate"], "s--", color="0.5", label="transformers' PyTorch")
    rate.set(xlabel="frames (with sound)", ylabel="tokens per second", ylim=(0, None))
    for axes in (first, rate):
        axes.set_xticks(list(rows), map(str, rows))
        axes.minorticks_off()
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, prints the table and plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES, choices=FRAMES)
    parser.add_argument("--turns", type=int, default=5, help="clips of each length")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    options = parser.parse_args()
    tunables = use_cpu_allocator()
    with tempfile.TemporaryDirectory() as folder:
        torch, jax = (Worker(make_side, name, Path(folder)) for name in ("torch", "jax"))
        bandwidth = torch.ask("bandwidth")
        machine = f"{processor()}; {bandwidth / 1e9:.1f} GB/s; {tunables}; {datetime.date.today()}"
        print(f"configs/mid.py, float32; {machine}; {torch.version}, {jax.version}\n")
        print(line(*HEADS))
        print(line(*["---"] * len(HEADS)), flush=True)
        rows = {}
        for frames in options.frames:
            positions, row = len(clip(CONFIG, frames, 0).row), measure(torch, jax, frames, options.turns)
            row["limit"] = bandwidth / jax.ask("token_bytes", positions + NEW // 2)
            rows[frames] = row
            print(
                line(
                    f"{frames}", f"{positions:,}", f"{row['torch_first']:.3f} s", f"{row['jax_first']:.3f} s",
                    f"{row['first_ratio']:.2f}", f"{row['prefill_ratio']:.2f}",
                    f"{row['second'] * 1e3:.0f} ms ({row['second'] / row['jax_first']:.0%})",
                    f"{row['torch_rate']:.0f}", f"{row['jax_rate']:.0f}", f"{row['rate_ratio']:.2f}",
                    f"{row['limit']:.0f}", f"{row['jax_rate'] / row['limit']:.0%}",
                ),
                flush=True,
            )  # fmt: skip
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
