"""What is drawn with a seed is the same on one device and on meshes of eight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.generate.engine import Engine
from tests.generate.conftest import tiny_assistant
from tests.tiny import REPOSITORY

MESHES = ["8,1,1,1", "2,2,1,2", "1,1,1,8"]


def run_on_devices(count: int, *arguments: object) -> str:
    """Runs a module of the tests on so many virtual devices; returns what it printed."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of the time
        # Collectives of two programs that run at once can wait for each other where cores are few.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def drawn(av_world: Path, out: Path, devices: int, meshes: list[str]) -> dict[str, list[list[int]]]:
    clip = next((av_world / "clips").glob("train*"))
    run_on_devices(devices, "tests.multidevice.generate", clip, out, *meshes)
    return json.loads(out.read_text())


def test_meshes_draw_the_same(av_world, tmp_path):
    (expected,) = drawn(av_world, tmp_path / "one.json", 1, ["1,1,1,1"]).values()
    assert expected[0] == expected[1] and expected[3] == expected[4] and expected[4] != expected[5]
    for mesh, found in drawn(av_world, tmp_path / "eight.json", 8, MESHES).items():
        assert found == expected, mesh


def test_answers_do_not_depend_on_what_else_runs(av_world):
    assert run_on_devices(4, "tests.generate.continuous", av_world, "2,1,1,2").split() == ["equal", "50", "4"]


def test_a_mesh_that_shares_slots_is_refused():
    mesh = jax.sharding.AbstractMesh((1, 1, 2, 1), ("data", "fsdp", "context", "tensor"))
    with pytest.raises(ConfigError, match=r"mesh\.context is 2: generation needs context=1"):
        Engine(*tiny_assistant(), mesh)
