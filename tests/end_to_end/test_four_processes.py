"""Four real processes with two devices each: equal to one process, and resumed on another mesh."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.commands import TIMEOUT, losses, run, train_command
from tests.tiny import REPOSITORY, virtual_devices

STEPS = 4
SHORT = (
    "--config.data.capacity.windows=8",
    "--config.data.val=",
    "--config.data.held_out=",
    "--config.checkpoint_every=2",
    f"--config.steps={STEPS}",
)


def run_as(count: int, mesh: dict[str, int], av_world: Path, workdir: Path, environment: dict[str, str]) -> None:
    """Runs the command as `count` processes of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    overrides = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    arguments = [*train_command(av_world, workdir, *SHORT, *overrides), "--distributed"]
    processes = [
        subprocess.Popen(
            arguments, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env=environment | virtual_devices(2) | {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(process_id),
            },
        )
        for process_id in range(count)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors[-3000:]


@pytest.fixture(scope="module")
def single_process(av_world, environment, tmp_path_factory) -> list[tuple[int, str, float]]:
    """Losses of one process with one device."""
    workdir = tmp_path_factory.mktemp("single_process") / "run"
    done = run(train_command(av_world, workdir, *SHORT), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(workdir)


def assert_close(workdir: Path, expected: list[tuple[int, str, float]]) -> None:
    found = losses(workdir)
    assert [line[:2] for line in found] == [line[:2] for line in expected] and len(found) == STEPS
    assert [line[2] for line in found] == pytest.approx([line[2] for line in expected], rel=1e-5)


def test_four_processes_equal_one_and_two_resume_on_another_mesh(single_process, av_world, shared_programs, tmp_path):
    """At first `data` and `context` span processes; in the second half `tensor` does."""
    four = tmp_path / "four"
    run_as(4, {"data": 2, "fsdp": 1, "context": 2, "tensor": 2}, av_world, four, shared_programs)
    assert_close(four, single_process)
    resumed = tmp_path / "resumed"
    shutil.copytree(four, resumed, ignore=shutil.ignore_patterns("model", "lock"))
    shutil.rmtree(resumed / "checkpoints" / str(STEPS))
    run_as(2, {"data": 1, "fsdp": 1, "context": 1, "tensor": 4}, av_world, resumed, shared_programs)
    assert losses(resumed)[: STEPS // 2] == losses(four)[: STEPS // 2]
    assert_close(resumed, single_process)
