"""The real command as tests run it, on a configuration of seconds."""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.tiny import CONFIG, REPOSITORY

STEPS = 12
# Overrides that compile in half the time, for runs that are not of the usual model anyway.
SMALL = (
    "--config.model.text.num_hidden_layers=1",
    "--config.model.vision.num_hidden_layers=2",
    "--config.model.audio.encoder_layers=1",
    "--config.model.omni_align.num_layers=1",
    "--config.tower_remat=none",
    "--config.decoder_remat=none",
    "--config.data.workers=0",
)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "omnivinci_jax.cli", *map(str, arguments)]


def run(arguments: list[str], environment: dict[str, str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, **options
    )


def train_command(av_world: Path, workdir: Path, *overrides: str) -> list[str]:
    return command(
        "train",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        f"--config.data.train={av_world / 'train.jsonl'}",
        f"--config.data.val={av_world / 'val.jsonl'}",
        f"--config.data.held_out={av_world / 'held_out.jsonl'}",
        f"--config.data.cache={av_world / 'cache'}",
        "--config.data.groups=2",
        "--config.data.capacity.rows=2",
        "--config.data.capacity.tiles=48",
        "--config.data.capacity.windows=5",
        f"--config.steps={STEPS}",
        "--config.checkpoint_every=3",
        "--config.eval_every=6",
        "--config.log_every=1",
        *overrides,
    )


def losses(workdir: Path) -> list[tuple[int, str, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["split"], line["loss"]) for line in map(json.loads, lines)]


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Until a run has done a step; it must not end before."""
    deadline = time.monotonic() + 600
    while not (workdir / "metrics.jsonl").exists() or not any(done >= step for done, _, _ in losses(workdir)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
