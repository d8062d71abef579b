"""launch/curriculum.sh with a stand-in for `omnivinci train` that exits at once or waits for SIGTERM."""

import itertools
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from omnivinci_jax.train.stages import STAGES
from tests.tiny import REPOSITORY

TRAIN = """#!/usr/bin/env bash
# Logs its arguments. At the stage in ./stop, exits with the given code, or waits for SIGTERM if that is "wait".
echo "$@" >> calls
directory=${4##*/}
mkdir -p "$4"
if [[ -e stop ]] && read -r stage code < stop && [[ $stage == "$directory" ]]; then
  [[ $code == wait ]] || exit "$code"
  trap 'sleep 0.3; rm stop; exit 75' TERM
  touch waiting
  while :; do sleep 0.05; done
fi
touch "$4/report.md"
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "train").write_text(TRAIN)
    (tmp_path / "train").chmod(0o755)
    return tmp_path


def curriculum(folder: Path, root: str = "runs") -> subprocess.Popen:
    environment = os.environ | {"TRAIN": "./train", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [REPOSITORY / "launch" / "curriculum.sh", "tiny.py", root, "--config.seed=3"],
        env=environment, cwd=folder, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def expected(stages: list[str]) -> list[str]:
    names = list(STAGES)
    starts = {stage: f" --config.start_from=runs/{before}" for before, stage in itertools.pairwise(names)}
    return [
        f"--config tiny.py:{stage} --workdir runs/{stage}{starts.get(stage, '')} --config.seed=3" for stage in stages
    ]


def test_stages_run_in_order_each_from_the_previous_one(folder):
    assert curriculum(folder).wait() == 0
    assert calls(folder) == expected(list(STAGES))
    assert curriculum(folder).wait() == 0 and len(calls(folder)) == len(STAGES)  # nothing runs again


def test_finished_stages_in_a_bucket_are_not_repeated(folder):
    """With a local folder named like the bucket, and a stand-in for gcloud that lists it."""
    (folder / "gcloud").write_text('#!/usr/bin/env bash\n[[ "$1 $2" == "storage ls" && -e $3 ]]\n')
    (folder / "gcloud").chmod(0o755)
    for _ in range(2):
        assert curriculum(folder, "gs://bucket/runs").wait() == 0
        assert len(calls(folder)) == len(STAGES)


def test_a_model_directory_can_replace_stage_0(folder):
    (folder / "runs" / "stage_0" / "params").mkdir(parents=True)
    assert curriculum(folder).wait() == 0
    assert calls(folder) == expected(list(STAGES)[1:])


@pytest.mark.parametrize("code", [2, 75])
def test_the_curriculum_exits_with_the_code_of_a_failed_stage(folder, code):
    (folder / "stop").write_text(f"vision_3 {code}\n")
    assert curriculum(folder).wait() == code
    (folder / "stop").unlink()
    assert curriculum(folder).wait() == 0
    names = list(STAGES)
    assert calls(folder) == expected([*names[:4], *names[3:]])


def test_sigterm_lets_the_stage_save_and_ends_with_75(folder):
    (folder / "stop").write_text("audio_1 wait\n")
    process = curriculum(folder)
    while not (folder / "waiting").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert not (folder / "stop").exists()  # the script waited for the stage to end
    assert curriculum(folder).wait() == 0
    names = list(STAGES)
    assert calls(folder) == expected([*names[:7], *names[6:]])
