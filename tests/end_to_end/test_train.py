"""The real command on real files: learns, resumes bit for bit after SIGKILL, reports errors in one line."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from etils import epath

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.settings import LoraConfig, TrainConfig, to_mapping
from omnivinci_jax.train.metrics import read_metrics
from omnivinci_jax.train.workdir import check_workdir
from tests.end_to_end.commands import (
    STEPS,
    TIMEOUT,
    WORKER,
    command,
    losses,
    run,
    run_here,
    train_command,
    wait_for_checkpoint,
    wait_for_step,
)
from tests.tiny import REPOSITORY

MIXTURE = """
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
def mixture(av_world, tmp_path_factory) -> str:
    """The configuration of a mixture: questions about videos, and the rest."""
    folder = tmp_path_factory.mktemp("mixture")
    for media in ("clips", "images", "sounds"):
        (folder / media).symlink_to(av_world / media)
    lines = (av_world / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "clips.jsonl").write_text("".join(line for line in lines if '"video"' in line))
    (folder / "rest.jsonl").write_text("".join(line for line in lines if '"video"' not in line))
    (folder / "mixture.py").write_text(MIXTURE)
    return f"{folder / 'mixture.py'}:{folder}"


def mixture_command(av_world: Path, workdir: Path, mixture: str, *overrides: str) -> list[str]:
    return train_command(av_world, workdir, "--config.data.train=", *overrides, config=mixture)


@pytest.fixture(scope="module")
def trained(av_world, mixture, environment, tmp_path_factory) -> Path:
    """The work directory of an uninterrupted run on a mixture."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = run(mixture_command(av_world, workdir, mixture, WORKER), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| **overall** |" in done.stdout
    (workdir.parent / "stderr").write_text(done.stderr)
    return workdir


def test_no_shared_memory_is_left_behind(trained):
    """Python's resource tracker reports shared memory that the loader's workers leaked."""
    errors = (trained.parent / "stderr").read_text()
    assert "resource_tracker" not in errors and "leaked" not in errors and "Exception ignored" not in errors


def test_a_run_writes_all_its_outputs(trained):
    results = json.loads((trained / "results.json").read_text())
    assert set(results["by_kind"]) == {"seen", "heard", "while", "order", "when"} and results["seconds"] > 0
    assert results["overall"] == pytest.approx(sum(results["by_kind"].values()) / 5)
    for name in ("loss.png", "accuracy.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in (trained / "report.md").read_text()
    assert list((trained / "tensorboard").glob("events*"))
    assert [step for step, split, _ in losses(trained) if split == "train"] == list(range(1, STEPS + 1))
    assert [step for step, split, _ in losses(trained) if split == "val"] == [6, 12]
    assert losses(trained)[-2][2] < losses(trained)[0][2] - 1  # it learns
    assert all(line.get("finite", 1) for line in read_metrics(trained / "metrics.jsonl"))


def source_metrics(workdir: Path) -> list[dict[str, float]]:
    """Metrics of the sources in the training log."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: x for name, x in line.items() if "/" in name} for line in lines if line["split"] == "train"]


def test_metrics_are_logged_by_source(trained):
    metrics = source_metrics(trained)
    assert len(metrics) == STEPS
    for values in metrics:
        assert values["omni/clips/tokens"] + values["text/rest/tokens"] == pytest.approx(1)
        assert values["omni/clips/tokens"] > 0.7 and values["omni/clips/skipped"] == values["text/rest/skipped"] == 0
        for name in ("omni/clips", "text/rest"):  # a source without tokens has no loss
            assert 0 < values[f"{name}/loss"] < 10 if values[f"{name}/tokens"] else f"{name}/loss" not in values
        assert len(values) == 4 + sum(values[f"{name}/tokens"] > 0 for name in ("omni/clips", "text/rest"))


def test_a_run_killed_or_preempted_at_any_step_resumes_with_the_same_losses(
    trained, mixture, av_world, environment, tmp_path, capfd
):
    """Killed before the first checkpoint, terminated, and killed after a later one; a second run is refused."""
    workdir = tmp_path / "killed"

    def start(wait, step: int, **options) -> subprocess.Popen:
        process = subprocess.Popen(
            mixture_command(av_world, workdir, mixture, WORKER), env=environment, cwd=REPOSITORY,
            stdout=subprocess.DEVNULL, start_new_session=True, **options,
        )  # fmt: skip
        wait(process, workdir, step)
        return process

    process = start(wait_for_step, 2, stderr=subprocess.DEVNULL)
    os.killpg(process.pid, signal.SIGSTOP)  # so that it does not go on while the second run is refused
    refused = run_here(mixture_command(av_world, workdir, mixture), capfd)
    assert_one_error(refused, f"used by another run (process {process.pid} on ")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = losses(workdir)[-1][0]

    process = start(wait_for_step, killed_at + 1, stderr=subprocess.PIPE, text=True)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == os.EX_TEMPFAIL and "leaked" not in errors, errors[-3000:]
    (saved,) = re.findall(r"SIGTERM: saved at step (\d+); the same command resumes", errors)
    assert (workdir / "checkpoints" / saved).exists() and killed_at < int(saved) < STEPS

    process = start(wait_for_checkpoint, int(saved) + 1, stderr=subprocess.DEVNULL)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    done = run(mixture_command(av_world, workdir, mixture), environment)
    assert done.returncode == 0 and "resumed at step" in done.stderr, done.stderr[-3000:]
    assert losses(workdir) == losses(trained)
    assert source_metrics(workdir) == source_metrics(trained)
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (trained, workdir))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_killed_loader_worker_ends_the_run_with_a_restart_code(av_world, environment, tmp_path):
    workdir = tmp_path / "run"
    endless = ("--config.steps=100000", "--config.data.val=", "--config.data.held_out=")
    process = subprocess.Popen(
        train_command(av_world, workdir, WORKER, *endless), env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    wait_for_step(process, workdir, 1)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == os.EX_TEMPFAIL and "Traceback" not in errors, errors[-3000:]
    assert "a loader worker was killed" in errors


def test_a_disk_that_fills_while_saving_keeps_the_last_good_checkpoint(
    trained, mixture, av_world, environment, tmp_path
):
    workdir = tmp_path / "full"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    command = mixture_command(av_world, workdir, mixture)

    # A file-size limit makes writes fail like a full disk: checkpoint files exceed it, logs do not.
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    done = run(command, environment, preexec_fn=limit)
    # Ignore messages of TensorStore's threads about the closed event loop.
    assert done.returncode == 2, done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if "omnivinci train: " in line]
    assert len(errors) == 1 and "the checkpoint could not be written" in errors[0]
    assert f"the last good one is from step {STEPS - 3}" in errors[0]
    done = run(command, environment)
    assert done.returncode == 0 and f"resumed at step {STEPS - 3}" in done.stderr
    assert losses(workdir) == losses(trained)


def test_evaluate_reproduces_the_runs_result(trained, av_world, environment, tmp_path):
    out = tmp_path / "new" / "results.json"
    done = run(
        command("evaluate", "--model", trained / "model", "--data", av_world / "held_out.jsonl", "--out", out),
        environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = (json.loads(path.read_text()) for path in (out, trained / "results.json"))
    assert found["by_kind"] == expected["by_kind"] and found["counts"] == expected["counts"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_questions_without_answers_do_not_count_as_correct(trained, tmp_path, capfd):
    data = tmp_path / "questions.jsonl"
    data.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}], "kind": None}) + "\n")
    out = tmp_path / "results.json"
    done = run_here(command("evaluate", "--model", trained / "model", "--data", data, "--out", out), capfd)
    assert done.returncode == 2 and not out.exists()
    assert f"{data}:1: the sample has no answer to compare with" in done.stderr


def test_generate_answers_about_any_mix_of_media(trained, av_world, environment):
    clip = next((av_world / "clips").glob("held_out_*"))
    image = next(av_world.rglob("*.png"))
    sound = next(av_world.rglob("*.wav"))
    media = ["--video", clip, "--image", image, "--audio", sound, "--speech_prompt", sound]
    done = run(
        command("generate", "--model", trained / "model", *media, "--prompt", "Which?", "--max_new_tokens", "5"),
        environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_inspect_draws_what_the_model_sees(trained, av_world, tmp_path, capfd):
    clip = next((av_world / "clips").glob("held_out_*"))
    out = tmp_path / "picture.png"
    done = run_here(command("inspect", clip, "--model", trained / "model", "--out", out), capfd)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.split("picture:")[0])
    assert summary["kind"] == "video" and summary["vision_tokens"] == len(summary["frame_times"]) == summary["tiles"]
    assert out.read_bytes().startswith(b"\x89PNG")


def test_check_lists_every_problem_with_its_line(av_world, tmp_path, capfd):
    shutil.copy(next((av_world / "clips").glob("*.mp4")), tmp_path / "good.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    lines = [
        chat("good.mp4"),
        chat("text.mp4"),
        chat("missing.mp4"),
        {"video": "good.mp4", "conversations": [{"from": "human", "value": "<video><video>"}]},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run_here(command("check", tmp_path / "mine.jsonl"), capfd)
    assert done.returncode == 1
    listed = done.stdout.splitlines()
    assert [line.split(":")[1] for line in listed[:-1]] == ["2", "3", "4"]
    assert listed[-1].endswith("4 conversations, 3 problem(s)")


def chat(video: str) -> dict:
    content = [{"type": "video", "video": video}, {"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]}


def broken(kind: str, folder: Path, av_world: Path) -> Path:
    """A JSONL file with one error."""
    clip = next((av_world / "clips").glob("*.mp4"))
    line = chat("clip.mp4")
    if kind == "text file named .mp4":
        (folder / "clip.mp4").write_text("hello")
    elif kind == "truncated mp4":
        (folder / "clip.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    elif kind != "missing file":
        shutil.copy(clip, folder / "clip.mp4")
    if kind == "two placeholders and one path":
        line = {"video": "clip.mp4", "conversations": [{"from": "human", "value": "<video> <video> What?"}]}
    if kind == "key that nothing reads":
        line["image_path"] = "clip.png"
    data = folder / "data.jsonl"
    data.write_text(json.dumps(line) + "\n")
    return data


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing file", "clip.mp4: no such file"),
        ("text file named .mp4", "clip.mp4: "),
        ("truncated mp4", "clip.mp4: "),
        ("two placeholders and one path", "data.jsonl:1: 2 <video> in the text but 1 video path"),
        ("key that nothing reads", "data.jsonl:1: 'image_path' looks like media, but is not read"),
    ],
)
def test_bad_data_stops_training_and_is_named(kind, message, av_world, tmp_path, capfd):
    data = broken(kind, tmp_path, av_world)
    done = run_here(train_command(av_world, tmp_path / "run", f"--config.data.train={data}"), capfd)
    assert_one_error(done, message)
    assert not (tmp_path / "run").exists()  # nothing was created, so the corrected command starts afresh


def test_missing_held_out_data_fails_before_the_first_step(av_world, tmp_path, capfd):
    done = run_here(train_command(av_world, tmp_path / "run", "--config.data.held_out=nowhere.jsonl"), capfd)
    assert_one_error(done, "nowhere.jsonl: no such file")
    assert not (tmp_path / "run").exists()


def assert_one_error(done: subprocess.CompletedProcess, message: str) -> None:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    errors = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("omnivinci train: ")]
    assert len(errors) == 1 and message in done.stderr


def test_an_unknown_key_suggests_the_nearest(av_world, tmp_path, capfd):
    done = run_here(train_command(av_world, tmp_path / "run", "--config.optimizer.learning_rat=1"), capfd)
    assert_one_error(done, "config.optimizer.learning_rat: no such key; did you mean learning_rate?")


def test_a_work_directory_of_another_configuration_is_left_alone(trained, mixture, av_world, capfd):
    before = sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*"))
    done = run_here(mixture_command(av_world, trained, mixture, "--config.seed=5"), capfd)
    assert_one_error(done, "has a run with another configuration (config.seed is 5, but was 0)")
    assert sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*")) == before


def test_a_work_directory_without_a_checkpoint_takes_another_configuration(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(to_mapping(TrainConfig(seed=1))))
    check_workdir(epath.Path(tmp_path), TrainConfig())
    (tmp_path / "checkpoints" / "3").mkdir()
    with pytest.raises(ConfigError, match=r"config\.seed is 0, but was 1"):
        check_workdir(epath.Path(tmp_path), TrainConfig())


def test_keys_newer_than_a_work_directory_get_their_defaults(tmp_path):
    values = to_mapping(TrainConfig(seed=1))
    del values["stop_after_tokens"], values["lora"]["alpha"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    check_workdir(epath.Path(tmp_path), TrainConfig(seed=1))
    with pytest.raises(ConfigError, match=r"config\.lora\.alpha is 5\.0, but was 16\.0"):
        check_workdir(epath.Path(tmp_path), TrainConfig(seed=1, lora=LoraConfig(alpha=5.0)))


def test_a_foreign_directory_is_left_alone(av_world, tmp_path, capfd):
    (tmp_path / "thesis.tex").write_text("precious")
    done = run_here(train_command(av_world, tmp_path), capfd)
    assert_one_error(done, "the folder is not empty and has no run")


def test_files_that_break_during_training_are_skipped_up_to_the_limit(av_world, environment, tmp_path, capfd):
    """A clip is truncated after indexing; later the data changes, and the run refuses to resume."""
    for folder in ("clips", "images", "sounds"):
        shutil.copytree(av_world / folder, tmp_path / folder)
    shutil.copy(av_world / "train.jsonl", tmp_path)
    overrides = (f"--config.data.train={tmp_path / 'train.jsonl'}", f"--config.data.cache={tmp_path / 'cache'}")
    arguments = train_command(av_world, tmp_path / "run", *overrides, "--config.data.max_skipped=0.5")
    done = run_here(command("index", *arguments[4:5], *arguments[6:]), capfd)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "0 problem(s)" in done.stdout
    victim = sorted((tmp_path / "clips").glob("train_*"))[0]
    with open(victim, "r+b") as file:
        file.truncate(2000)
    done = run(arguments, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    named = (tmp_path / "run" / "skipped.txt").read_text()
    assert f"{tmp_path / 'train.jsonl'}:" in named and str(victim) in named and f"skipped: {tmp_path}" in done.stderr

    with open(tmp_path / "train.jsonl", "a") as file:
        file.write(json.dumps({"messages": [{"role": "assistant", "content": "more"}]}) + "\n")
    assert_one_error(run_here(arguments, capfd), "the training data has changed since the run began")
