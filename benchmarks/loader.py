"""Measures how fast the loader reads 720p video with sound for the published model, and how full the demo's groups are.

python benchmarks/loader.py --folder DIR

Writes clips of ten seconds (1280x720 at 25 frames/s, H.264 with a keyframe per second, stereo AAC). Reads them with the
training loader, uncached, in turns with one worker and with two. Each pass starts new workers; timing starts at the
second batch. Run nothing else meanwhile.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from omnivinci_jax.av_world.encode import write_media
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.index import Index, build_index
from omnivinci_jax.data.loader import Plan, read_batches
from omnivinci_jax.data.mixture import as_mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.data.setup import make_processor, open_mixture
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import DataConfig, TrainConfig, load_config

REPOSITORY = Path(__file__).parents[1]
SECONDS, FRAME_RATE, SAMPLE_RATE = 10, 25, 48_000


def write_clips(folder: Path, count: int) -> Path:
    """Writes clips of moving noise and a JSONL file with one question about each."""
    lines = []
    for index in tqdm(range(count), desc="clips", unit="clip"):
        path = folder / f"{index:04}.mp4"
        if not path.exists():
            rng = np.random.default_rng(index)
            # Moving blocks, because noise in every pixel would test the decoder at an unrealistic bit rate.
            picture = rng.integers(0, 256, (90, 160, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            frames = np.stack([np.roll(picture, (3 * t, 5 * t), (0, 1)) for t in range(SECONDS * FRAME_RATE)])
            sound = rng.normal(scale=0.1, size=(2, SECONDS * SAMPLE_RATE)).astype(np.float32)
            write_media(path, frames, FRAME_RATE, sound, SAMPLE_RATE)
        question = [{"type": "video", "video": path.name}, {"type": "text", "text": "What moves?"}]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Blocks."}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    (folder / "clips.jsonl").write_text("".join(lines))
    return folder / "clips.jsonl"


def clips_per_second(index: Index, processor: Processor, settings: DataConfig, batches: int) -> float:
    """Returns the clips read per second after the first batch, which waits for the workers to start."""
    plan = Plan(as_mixture(index), settings.capacity, seed=0)
    iterator = iter(read_batches(index, plan, processor, settings, [0], start=0, stop=batches))
    next(iterator)
    started = time.perf_counter()
    count = sum(int(batch.segment_ids.max(axis=-1).sum()) for batch, _ in iterator)
    return count / (time.perf_counter() - started)


def packing(config: TrainConfig) -> dict[str, float]:
    """Returns the shares of slots, tiles and windows that an epoch of the training data fills."""
    mixture = open_mixture(make_processor(config), config.data)
    plan, capacity, groups, seen = Plan(mixture, config.data.capacity, config.seed), config.data.capacity, 0, 0
    while seen < len(mixture):
        seen += sum(len(row) for row in plan[groups])
        groups += 1
    total = np.array([capacity.rows * capacity.slots, capacity.tiles, capacity.windows])
    shares = mixture.sizes[:, :3].sum(axis=0) / groups / total
    return dict(zip(("slots", "tiles", "windows"), shares.tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where to write the clips, 100 MB")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--batches", type=int, default=13)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--demo", type=Path, help="configuration whose packing to measure; needs its data")
    arguments, overrides = parser.parse_known_args()
    flags.FLAGS.mark_as_parsed()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    processor = Processor(OmniVinciConfig(), Tokenizer(REPOSITORY / "configs" / "tiny_tokenizer"))
    capacity = Capacity(rows=1, slots=8192, tiles=80, windows=4, clips=4)
    index = build_index(Jsonl(write_clips(arguments.folder, arguments.clips)), processor, capacity, "skip", quiet=True)
    settings, measured = DataConfig(groups=1, capacity=capacity), {1: [], 2: []}
    for _ in range(arguments.repeats):
        for workers, speeds in measured.items():
            speeds.append(
                clips_per_second(index, processor, replace(settings, workers=workers), arguments.batches * workers)
            )
            print(f"{workers} worker(s): {speeds[-1]:.2f} clips/s", flush=True)
    ratio = statistics.median(two / one for one, two in zip(measured[1], measured[2], strict=True))
    print(
        f"\n{os.cpu_count()} cores, clips of {SECONDS} s at 1280x720 with stereo sound, {index.sizes[0, 1]} frames read"
    )
    print("| workers | clips/s (median) | min, max |\n|---|---|---|")
    for workers, speeds in measured.items():
        print(f"| {workers} | {statistics.median(speeds):.2f} | {min(speeds):.2f}, {max(speeds):.2f} |")
    print(f"two workers against one, median of pairs: {ratio:.2f}x")
    if arguments.demo:
        shares = packing(load_config([f"--config={arguments.demo}", *overrides]))
        print("used share of the groups: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))


if __name__ == "__main__":
    main()
