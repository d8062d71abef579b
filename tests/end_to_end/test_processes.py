"""Multi-process runs through the launch scripts: killed, preempted, lost, and resumed with fewer processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.commands import (
    TIMEOUT,
    last_checkpoint,
    losses,
    run,
    train_command,
    wait_for_checkpoint,
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


LOCAL = ["launch/local.sh", "2"]
SHORT = "--config.data.held_out="


@pytest.fixture(scope="module")
def two_processes(av_world, environment, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("two") / "run"
    code, errors = finished(launch(LOCAL, train_command(av_world, workdir, SHORT), environment))
    assert code == 0, errors[-3000:]
    return workdir


def test_an_interrupted_run_of_two_processes_restarts_itself_and_resumes_on_one(
    two_processes, av_world, environment, tmp_path
):
    """One of two is preempted, then one is killed, then all are terminated; one process finishes the run."""
    workdir = tmp_path / "run"
    arguments = train_command(av_world, workdir, SHORT)
    process = launch(LOCAL, arguments, environment)
    wait_for_step(process, workdir, 1)
    os.kill(trainers(workdir)[-1], signal.SIGTERM)
    wait_for_checkpoint(process, workdir, 3)
    first = trainers(workdir)
    os.kill(first[-1], signal.SIGKILL)
    wait_until(process, lambda: not {*first} & {*trainers(workdir)})
    wait_for_checkpoint(process, workdir, last_checkpoint(workdir) + 1)  # the third start trains
    process.send_signal(signal.SIGTERM)
    code, errors = finished(process)
    assert code == os.EX_TEMPFAIL, errors[-3000:]
    assert errors.count("starting again") == 2
    before = losses(workdir)
    assert before == losses(two_processes)[: len(before)]  # bit for bit

    done = run(arguments, environment)
    assert done.returncode == 0 and "resumed at step" in done.stderr, done.stderr[-3000:]
    for found, expected in zip(losses(workdir), losses(two_processes), strict=True):
        assert found[:2] == expected[:2] and found[2] == pytest.approx(expected[2], abs=1e-5 * abs(expected[2]))


def test_a_second_run_in_a_work_directory_is_refused(av_world, environment, tmp_path):
    workdir = tmp_path / "run"
    arguments = train_command(av_world, workdir, "--config.steps=1000")
    process = subprocess.Popen(arguments, env=environment, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    wait_for_step(process, workdir, 1)
    done = run(arguments, environment)
    process.kill()
    assert done.returncode == 2 and f"used by another run (process {process.pid} on " in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_variables_give_one_line(av_world, environment, tmp_path):
    arguments = [*train_command(av_world, tmp_path / "run"), "--distributed"]
    done = run(arguments, environment | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"})
    assert done.returncode == 2 and "--distributed: JAX_COORDINATOR_ADDRESS is not set" in done.stderr


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


def test_the_slurm_script_starts_one_process_per_task_and_requeues_when_preempted(
    two_processes, av_world, environment, tmp_path
):
    """With stand-ins for srun and scontrol; the processes are real."""
    for name, text in SLURM.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = environment | {
        "PATH": f"{tmp_path}{os.pathsep}{environment['PATH']}", "HARDWARE": "cpu", "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost",
    }  # fmt: skip
    workdir = tmp_path / "run"
    arguments = train_command(av_world, workdir, SHORT)
    process = launch(["bash", "launch/slurm.sbatch"], arguments, environment)
    wait_for_step(process, workdir, 2)
    os.kill(trainers(workdir)[-1], signal.SIGTERM)
    code, errors = finished(process)
    assert code == os.EX_TEMPFAIL and f"requeued {os.getpid()}" in errors, errors[-3000:]
    code, errors = finished(launch(["bash", "launch/slurm.sbatch"], arguments, environment))
    assert code == 0 and "requeued" not in errors, errors[-3000:]
    assert losses(workdir) == losses(two_processes)
    code, errors = finished(launch(["bash", "launch/slurm.sbatch"], [*arguments, "--config.sed=1"], environment))
    assert code == 255 and "no such key" in errors and "requeued" not in errors, errors[-3000:]
