"""Every command that loads a model shards it over the given mesh."""

import json

import pytest

from omnivinci_jax import cli, model_dir
from omnivinci_jax.config import OmniAlignConfig, Qwen2Config
from tests.multidevice.programs import run_on_devices
from tests.multidevice.sharded import run_commands
from tests.tiny import random_params, tiny_config, tiny_tokenizer

MESHES = ["fsdp=8", "fsdp=2,tensor=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose decoder has most of the parameters, as at 9B: position tables are sharded only over fsdp."""
    text = Qwen2Config(512, 512, 1536, 2, 8, 4, max_position_embeddings=1024)
    config = tiny_config(text=text, omni_align=OmniAlignConfig(1, 8, learned_scale=True))
    folder = tmp_path_factory.mktemp("models") / "model"
    model_dir.save(folder, config, random_params(config), tiny_tokenizer())
    return folder


def test_each_device_has_its_share_and_answers_match_one_device(folder, av_world, tmp_path):
    data = tmp_path / "questions.jsonl"
    lines = (av_world / "val.jsonl").read_text().splitlines()[:4]
    data.write_text("\n".join(lines).replace("clips/", f"{av_world / 'clips'}/"))
    run_on_devices(8, "tests.multidevice.sharded", folder, data, tmp_path / "eight.json", *MESHES)
    found = json.loads((tmp_path / "eight.json").read_text())
    for mesh in MESHES:
        for count in found["bytes"][mesh].values():
            assert count["sharded"] > 10 * count["replicated"]
            assert count["most"] <= 1.05 * (count["sharded"] / 8 + count["replicated"]), mesh
    one_device = run_commands(folder, data, tmp_path / "one.json")
    assert found["commands"]["answers"] == one_device["answers"]
    expected, results = one_device["results"], found["commands"]["results"]
    assert results.pop("seconds") and expected.pop("seconds")
    assert results.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-5)
    assert results == expected


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("tensor:2", "--mesh is 'tensor:2': write axes with their sizes, for example data=1,tensor=4"),
        ("model=2", "--mesh.model: no such key"),
        ("tensor=7", "does not multiply to 1 device(s)"),
    ],
)
def test_an_invalid_mesh_gives_one_line(mesh, message, folder, capsys):
    assert cli.main(["generate", "--model", str(folder), "--prompt", "x", "--mesh", mesh]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
