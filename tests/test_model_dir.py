"""Model directories with damage."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from omnivinci_jax.errors import UserError
from omnivinci_jax.model_dir import are_finite, are_finite_on_host, check_finite, load_params, save_params

PARAMS = {"llm": {"kernel": jnp.ones((4, 3)), "scale": jnp.ones(3, jnp.bfloat16)}, "count": jnp.arange(3)}


def load(folder: Path, params: dict) -> dict:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return load_params(epath.Path(folder), jax.tree.map(lambda _: device, params))


def error(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        load(folder, PARAMS)
    message = str(raised.value)
    assert message.startswith(f"{folder / 'params'}: ") and "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path) -> Path:
    save_params(epath.Path(tmp_path), PARAMS)
    return tmp_path


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["kernel", "scale"])
def test_parameters_that_are_not_finite_are_named(name, value, tmp_path):
    leaf = PARAMS["llm"][name]
    bad = leaf.at[(1,) * leaf.ndim].set(value)
    params = PARAMS | {"llm": PARAMS["llm"] | {name: bad}}
    save_params(epath.Path(tmp_path), params)
    assert f"params: llm/{name} holds values that are not finite: the files are damaged" in error(tmp_path)
    assert list(map(bool, are_finite([leaf, bad]))) == are_finite_on_host([leaf, bad]) == [True, False]


def test_good_parameters_load(folder):
    jax.tree.map(lambda a, b: check_finite({"difference": (a - b).astype(float)}, "x"), load(folder, PARAMS), PARAMS)
    check_finite({"scalar": jnp.array(1.0), "empty": jnp.zeros((0, 2)), "ids": jnp.arange(2)}, "x")


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "_sharding"])
def test_files_cut_short_are_one_error(folder, name):
    content = (folder / "params" / name).read_bytes()
    (folder / "params" / name).write_bytes(content[: len(content) // 2])
    assert "damaged or cut short: the parameters cannot be read" in error(folder)
