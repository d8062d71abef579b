"""Multi-process runs through the launch scripts: killed, preempted, lost, and resumed with fewer processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.commands import (
    STEPS,
    TIMEOUT,
    losses,
    run_here,
    train_command,
    wait_for_step,
    wait_until,
)
from tests.tiny import REPOSITORY


def launch(script: list[str], arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts a launch script with the arguments of `train_command`."""
    # The scripts call the `omnivinci` installed beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.Popen(
        [*script, *arguments[4:]], env=environment | {"PATH": path, "GRACE_SECONDS": "20"}, cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=TIMEOUT)
    return process.returncode, errors


def trainers(workdir: Path) -> list[int]:
    """Ids of a work directory's training processes, without loader workers."""
    found = subprocess.run(["pgrep", "-f", f"omnivinci train.*{workdir}"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


SLURM = {
    # Like srun: numbers the tasks, kills all some time after one fails, and exits with the highest code.
    "srun": """#!/usr/bin/env bash
shift
for ((task = 0; task < SLURM_NTASKS; task++)); do SLURM_PROCID=$task "$@" & pids+=($!); done
highest=0
while ((${#pids[@]})); do
  code=0
  wait -n -p ended "${pids[@]}" || code=$?
  ((code <= highest)) || highest=$code
  mapfile -t pids < <(printf '%s\\n' "${pids[@]}" | grep -vx "$ended")
  if ((code && ${#pids[@]})); then (sleep 20; kill -KILL "${pids[@]}") >/dev/null 2>&1 & fi
done
exit $highest
""",
    "scontrol": """#!/usr/bin/env bash
case $1 in show) echo localhost ;; requeue) echo "requeued $2" >&2 ;; esac
""",
}

SLURM_SCRIPT = ["bash", "launch/slurm.sbatch"]
SHORT = ("--config.data.held_out=", f"--config.eval_every={STEPS}")


@pytest.fixture(scope="module")
def slurm(shared_programs, tmp_path_factory) -> dict[str, str]:
    """An environment with stand-ins for srun and scontrol; the processes are real."""
    folder = tmp_path_factory.mktemp("slurm")
    for name, text in SLURM.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return shared_programs | {
        "PATH": f"{folder}{os.pathsep}{shared_programs['PATH']}", "HARDWARE": "cpu", "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost",
    }  # fmt: skip


@pytest.fixture(scope="module")
def two_processes(av_world, slurm, tmp_path_factory) -> Path:
    """The work directory of an uninterrupted run of two processes."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    code, errors = finished(launch(SLURM_SCRIPT, train_command(av_world, workdir, *SHORT), slurm))
    assert code == 0 and "requeued" not in errors, errors[-3000:]
    return workdir


def wait_for_next_step(process: subprocess.Popen, workdir: Path) -> None:
    wait_for_step(process, workdir, losses(workdir)[-1][0] + 1)


def test_a_run_of_two_processes_survives_preemption_and_loss_and_resumes_on_one(
    two_processes, av_world, slurm, shared_programs, tmp_path
):
    """One of two is preempted under SLURM; locally, one is killed, then all are terminated; one process finishes."""
    workdir = tmp_path / "run"
    arguments = train_command(av_world, workdir, *SHORT)
    process = launch(SLURM_SCRIPT, arguments, slurm)
    wait_for_step(process, workdir, 1)
    os.kill(trainers(workdir)[-1], signal.SIGTERM)
    code, errors = finished(process)
    assert code == os.EX_TEMPFAIL and f"requeued {os.getpid()}" in errors, errors[-3000:]

    process = launch(["launch/local.sh", "2"], arguments, shared_programs)
    wait_for_next_step(process, workdir)
    first = trainers(workdir)
    os.kill(first[-1], signal.SIGKILL)
    wait_until(process, lambda: not {*first} & {*trainers(workdir)})
    wait_for_next_step(process, workdir)  # the next start trains
    process.send_signal(signal.SIGTERM)
    code, errors = finished(process)
    assert code == os.EX_TEMPFAIL, errors[-3000:]
    assert errors.count("starting again") == 1
    before = losses(workdir)
    assert before == losses(two_processes)[: len(before)]  # bit for bit

    code, errors = finished(launch(["launch/local.sh", "1"], arguments, shared_programs))
    assert code == 0 and "resumed at step" in errors, errors[-3000:]
    for found, expected in zip(losses(workdir), losses(two_processes), strict=True):
        assert found[:2] == expected[:2] and found[2] == pytest.approx(expected[2], abs=1e-5 * abs(expected[2]))


def test_the_slurm_script_does_not_requeue_a_job_that_fails_for_good(av_world, slurm, tmp_path):
    arguments = train_command(av_world, tmp_path / "run", "--config.sed=1")
    code, errors = finished(launch(SLURM_SCRIPT, arguments, slurm))
    assert code == 255 and "no such key" in errors and "requeued" not in errors, errors[-3000:]


STAND_IN = """#!/usr/bin/env bash
# Process 0 succeeds; process 1 exits with the next line of ./codes.
((JAX_PROCESS_ID)) || exit 0
read -r code < codes
sed -i 1d codes
exit "$code"
"""


@pytest.mark.parametrize(
    ("codes", "code", "restarts"), [((75, 137, 0), 0, 2), ((75, 2, 0), 2, 1), ((75, 75, 75), 75, 2)]
)
def test_the_local_script_starts_again_after_preemption_and_loss_only(codes, code, restarts, tmp_path):
    (tmp_path / "omnivinci").write_text(STAND_IN)
    (tmp_path / "omnivinci").chmod(0o755)
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "GRACE_SECONDS": "0.1", "MAX_RESTARTS": "2"}
    done = subprocess.run(
        [REPOSITORY / "launch" / "local.sh", "2"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == code and done.stderr.count("starting again") == restarts, done.stderr


def test_missing_variables_give_one_line(av_world, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    done = run_here([*train_command(av_world, tmp_path / "run"), "--distributed"], capfd)
    assert done.returncode == 2 and "--distributed: JAX_COORDINATOR_ADDRESS is not set" in done.stderr
