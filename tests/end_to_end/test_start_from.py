"""Runs that start from another model, with and without adapters: load, save, resume and export."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.commands import STEPS, command, losses, run, run_here, train_command

LORA = "--config.lora.rank=4"


def train(av_world: Path, workdir: Path, environment, *overrides: str) -> subprocess.CompletedProcess:
    return run(train_command(av_world, workdir, *overrides), environment)


@pytest.fixture(scope="module")
def base(av_world, environment, tmp_path_factory) -> Path:
    """A finished run, from which others start."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    done = train(av_world, workdir, environment, "--config.data.held_out=", "--config.data.val=")
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


@pytest.fixture(scope="module")
def adapted(base, av_world, environment, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("lora") / "run"
    done = train(av_world, workdir, environment, f"--config.start_from={base}", LORA)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def test_a_run_begins_with_the_parameters_of_start_from(base, adapted, av_world, environment, tmp_path):
    done = train(av_world, tmp_path / "run", environment, f"--config.start_from={base / 'model'}", "--config.data.val=")
    assert done.returncode == 0, done.stderr[-3000:]
    fresh, full, lora = (losses(folder)[0][2] for folder in (base, tmp_path / "run", adapted))
    assert full == pytest.approx(lora, rel=1e-5)  # a new adapter changes nothing
    assert full < fresh - 0.5


def test_training_touches_every_module(base):
    root = json.loads((base / "model" / "config.json").read_text())
    assert "untrained" not in root["omnivinci_jax"]


def test_a_run_with_adapters_saves_only_adapters(base, adapted):
    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    assert not (adapted / "model").exists()
    assert size(adapted / "adapters") < 0.1 * size(base / "model")
    newest = max((adapted / "checkpoints").iterdir())
    assert size(newest) < 0.2 * size(base / "model")  # with two moments per parameter


def test_adapters_resume_bit_for_bit(base, adapted, av_world, environment, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(adapted, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    done = train(av_world, workdir, environment, f"--config.start_from={base}", LORA)
    assert done.returncode == 0 and f"resumed at step {STEPS - 3}" in done.stderr, done.stderr[-3000:]
    assert losses(workdir) == losses(adapted)


def test_an_export_scores_like_the_adapters(adapted, av_world, environment, tmp_path):
    model, out = tmp_path / "model", tmp_path / "results.json"
    done = run(command("export", "--run", adapted, "--out", model), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    done = run(command("evaluate", "--model", model, "--data", av_world / "held_out.jsonl", "--out", out), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = (json.loads(path.read_text()) for path in (out, adapted / "results.json"))
    assert found["by_kind"] == expected["by_kind"] and found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("start", "overrides", "message"),
    [
        ("nowhere", (), "nowhere: no such directory"),
        ("PyTorch", (), "these are PyTorch files; convert them first: python -m conversion.from_torch"),
        ("empty", (), "neither a model directory nor a work directory with a model"),
        ("adapters", (), "the run has only adapters; merge them first: omnivinci export --run"),
        (
            "base",
            ("--config.model.text.hidden_size=64",),
            "embedding has shape (512, 128), but config.model expects (512, 64)",
        ),
        ("base", ("--config.lora.rank=2", "--config.lora.targets=('llm/layer/.*',)"), "matches no dense kernel"),
        (
            "",
            ("--config.lora.rank=2",),
            "need a whole model to adapt: set config.start_from and no config.start_modules",
        ),
    ],
)
def test_an_invalid_start_from_gives_one_line(start, overrides, message, base, adapted, av_world, tmp_path, capfd):
    folder = {"base": base, "adapters": adapted, "": ""}.get(start, tmp_path / start)
    if start in ("PyTorch", "empty"):
        folder.mkdir()
    if start == "PyTorch":
        (folder / "model.safetensors").write_bytes(b"")
    done = run_here(train_command(av_world, tmp_path / "run", f"--config.start_from={folder}", *overrides), capfd)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("omnivinci train: ")]
    assert message in line
    assert not (tmp_path / "run").exists()


def test_export_needs_adapters(base, tmp_path, capfd):
    done = run_here(command("export", "--run", base, "--out", tmp_path / "model"), capfd)
    assert done.returncode == 2 and "the run trained without adapters" in done.stderr
    done = run_here(command("export", "--run", tmp_path, "--out", tmp_path / "model"), capfd)
    assert done.returncode == 2 and "not a run's work directory" in done.stderr and not (tmp_path / "model").exists()
