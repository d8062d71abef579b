"""Runs the real command on a configuration that takes seconds."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from omnivinci_jax import cli
from tests.tiny import CONFIG, REPOSITORY

STEPS = 12
TIMEOUT = 900  # seconds; long enough that only a hang reaches it
# All runs share this model and its compiled programs; the minimum of layers halves compile time, and AdamW halves it
# again, because Muon orthogonalizes each kernel with operations of its own.
MODEL = (
    "--config.model.text.num_hidden_layers=1",
    "--config.model.vision.num_hidden_layers=2",
    "--config.model.audio.encoder_layers=1",
    "--config.model.omni_align.num_layers=1",
    "--config.tower_remat=none",
    "--config.decoder_remat=none",
    "--config.optimizer.name=adamw",
)
BATCH = (
    "--config.data.workers=0",  # starting a process takes seconds
    "--config.data.groups=2",
    "--config.data.capacity.rows=2",
    "--config.data.capacity.tiles=48",
    "--config.data.capacity.windows=5",
)
WORKER = "--config.data.workers=1"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "omnivinci_jax.cli", *map(str, arguments)]


def run_here(arguments: list[str], capfd: pytest.CaptureFixture) -> subprocess.CompletedProcess:
    """Runs a command that computes little in this process, which is faster than a new one."""
    capfd.readouterr()
    code = cli.main(arguments[3:])
    return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())


def run(arguments: list[str], environment: dict[str, str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT, **options
    )


def train_command(av_world: Path, workdir: Path, *overrides: str, config: str | Path = CONFIG) -> list[str]:
    return command(
        "train",
        f"--config={config}",
        f"--workdir={workdir}",
        *MODEL,
        f"--config.data.train={av_world / 'train.jsonl'}",
        f"--config.data.val={av_world / 'val.jsonl'}",
        f"--config.data.held_out={av_world / 'held_out.jsonl'}",
        f"--config.data.cache={av_world / 'cache'}",
        *BATCH,
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
    """Waits until a running process has logged `step`; its checkpoints may lag behind."""
    metrics = workdir / "metrics.jsonl"
    wait_until(process, lambda: metrics.exists() and any(done >= step for done, _, _ in losses(workdir)))


def wait_for_checkpoint(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Waits until a running process has finished the checkpoint of `step` or a later one."""
    wait_until(process, lambda: last_checkpoint(workdir) >= step)


def last_checkpoint(workdir: Path) -> int:
    """Step of the last finished checkpoint, 0 without one: Orbax names only complete checkpoints by step."""
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def wait_until(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    """Waits until `reached` is true; fails if the process ends first."""
    deadline = time.monotonic() + TIMEOUT
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
