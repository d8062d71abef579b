"""A run on a mixture of sources: metrics of each source, and an exact resume after a kill."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.commands import losses, run, train_command, wait_for_checkpoint
from tests.tiny import REPOSITORY

CONFIG = """
from configs.tiny import get_config as tiny
from omnivinci_jax.settings import DataConfig, Source, to_config_dict

def get_config(folder):
    config = tiny()
    config.data.sources = to_config_dict(DataConfig(sources=(
        Source("clips", f"{folder}/clips.jsonl", "omni", 3.0),
        Source("rest", f"{folder}/rest.jsonl", "text", 1.0),
    ))).sources
    return config
"""


@pytest.fixture(scope="module")
def mixed(av_world, tmp_path_factory) -> list[str]:
    """The configuration of a mixture: questions about videos, and the rest."""
    folder = tmp_path_factory.mktemp("mixed")
    for media in ("clips", "images", "sounds"):
        (folder / media).symlink_to(av_world / media)
    lines = (av_world / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "clips.jsonl").write_text("".join(line for line in lines if '"video"' in line))
    (folder / "rest.jsonl").write_text("".join(line for line in lines if '"video"' not in line))
    (folder / "mixed.py").write_text(CONFIG)
    overrides = ["--config.data.train=", "--config.data.held_out=", "--config.log_every=3"]
    return [f"--config={folder / 'mixed.py'}:{folder}", *overrides]


def command_of(mixed: list[str], av_world: Path, workdir: Path) -> list[str]:
    command = train_command(av_world, workdir, *mixed[1:])
    return [mixed[0] if argument.startswith("--config=") else argument for argument in command]


def test_a_mixture_resumes_exactly_and_logs_metrics_by_source(mixed, av_world, environment, tmp_path):
    whole = run(command_of(mixed, av_world, tmp_path / "whole"), environment)
    assert whole.returncode == 0, whole.stderr[-3000:]
    command = command_of(mixed, av_world, tmp_path / "killed")
    process = subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for_checkpoint(process, tmp_path / "killed", 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = run(command, environment)
    assert resumed.returncode == 0 and "resumed at step" in resumed.stderr, resumed.stderr[-3000:]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")

    first, second = (source_metrics(tmp_path / name) for name in ("whole", "killed"))
    assert first == second and len(first) == 4
    for values in first:
        assert set(values) == {f"{name}/{metric}" for name in ("omni/clips", "text/rest") for metric in SOURCE_METRICS}
        assert values["omni/clips/tokens"] + values["text/rest/tokens"] == pytest.approx(1)
        assert values["omni/clips/tokens"] > 0.7 and values["omni/clips/skipped"] == 0
        assert 0 < values["omni/clips/loss"] < 10 and 0 < values["text/rest/loss"] < 10


SOURCE_METRICS = ("loss", "tokens", "skipped")


def source_metrics(workdir: Path) -> list[dict[str, float]]:
    """Metrics of the sources in the training log."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: x for name, x in line.items() if "/" in name} for line in lines if line["split"] == "train"]
