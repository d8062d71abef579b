"""Sampling with a seed gives the same answers on one device and on meshes of eight."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.generate.engine import Engine
from tests.generate.conftest import tiny_assistant
from tests.multidevice.programs import run_on_devices

MESHES = ["8,1,1,1", "2,2,1,2", "1,1,1,8"]


def sample(av_world: Path, out: Path, devices: int, meshes: list[str]) -> dict[str, list[list[int]]]:
    clip = next((av_world / "clips").glob("train*"))
    run_on_devices(devices, "tests.multidevice.generate", clip, out, *meshes)
    return json.loads(out.read_text())


def test_meshes_sample_the_same_answers(av_world, tmp_path):
    (expected,) = sample(av_world, tmp_path / "one.json", 1, ["1,1,1,1"]).values()
    assert expected[0] == expected[1] and expected[3] == expected[4] and expected[4] != expected[5]
    for mesh, found in sample(av_world, tmp_path / "eight.json", 8, MESHES).items():
        assert found == expected, mesh


def test_answers_do_not_depend_on_concurrent_requests(av_world):
    done = run_on_devices(4, "tests.generate.continuous", av_world, "2,1,1,2")
    assert done.stdout.split() == ["equal", "50", "4"]


def test_a_context_mesh_is_refused():
    devices = np.array(2 * jax.devices()[:1]).reshape(1, 1, 2, 1)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "context", "tensor"))
    with pytest.raises(ConfigError, match=r"mesh\.context is 2: generation needs context=1"):
        Engine(*tiny_assistant(), mesh)
