"""Meshes of eight devices give the loss and gradient of one device, on real packed data of all modalities."""

from pathlib import Path

import numpy as np
import pytest

from tests.multidevice.programs import run_on_devices

# Each axis alone, every three of them, and tensor as large as the number of keys' heads; a mesh compiles for seconds.
NAMES = ["8,1,1,1", "1,8,1,1", "1,1,8,1", "1,1,1,8", "2,2,1,2", "2,1,2,2", "2,2,2,1/2", "1,2,2,2/4", "1,2,2,2+lora"]
NAMES += ["1,2,1,4", "2,1,4,1"]


def compare(av_world: Path, out: Path, devices: int, meshes: list[str]) -> dict[str, np.ndarray]:
    # Without the compilation cache on several devices, because XLA warns only when it compiles.
    cache = {} if devices == 1 else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = run_on_devices(devices, "tests.multidevice.compare", av_world / "train.jsonl", out, *meshes, **cache)
    assert "Involuntary full rematerialization" not in done.stderr  # XLA would gather a whole array
    with np.load(out) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def one_device(av_world, tmp_path_factory) -> dict[str, np.ndarray]:
    return compare(av_world, tmp_path_factory.mktemp("one") / "one.npz", 1, ["1,1,1,1", "1,1,1,1+lora"])


@pytest.fixture(scope="module")
def eight_devices(av_world, tmp_path_factory) -> dict[str, np.ndarray]:
    return compare(av_world, tmp_path_factory.mktemp("eight") / "eight.npz", 8, NAMES)


@pytest.mark.parametrize("mesh", NAMES)
def test_a_mesh_matches_one_device(mesh, one_device, eight_devices):
    found = _of_mesh(eight_devices, mesh)
    expected_leaves = _of_mesh(one_device, "1,1,1,1+lora" if mesh.endswith("+lora") else "1,1,1,1")
    assert found.keys() == expected_leaves.keys() and len(found) > 50
    # Rounding scales with the sums that make up a gradient. A key's bias has no other gradient: softmax ignores it.
    largest = max(np.abs(value).max() for value in expected_leaves.values())
    for name, expected in expected_leaves.items():
        bound = 1e-5 * max(np.abs(expected).max(), 1e-3 * largest)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=bound, err_msg=name)


def _of_mesh(arrays: dict[str, np.ndarray], mesh: str) -> dict[str, np.ndarray]:
    prefix = mesh.replace("/", "|") + ":"
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
