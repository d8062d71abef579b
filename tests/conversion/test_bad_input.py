"""Bad PyTorch files give a one-line error that names the key or the file, and nothing is written."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conversion.from_torch import from_torch
from conversion.tensor_files import INDEX, SINGLE
from conversion.to_torch import to_torch
from omnivinci_jax.errors import UserError
from tests.conversion.checkpoints import make, parameters, rewrite
from tests.tiny import REPOSITORY

NORM = "llm.model.norm.weight"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def shard(folder: Path) -> Path:
    rewrite(folder, lambda tensors: None, limit=sum(f.stat().st_size for f in folder.glob("*.safetensors")) * 2 // 3)
    return folder


def missing_shard(folder):
    (shard(folder) / SHARDS[1]).unlink()
    return f"{SHARDS[1]}: no such file"


def truncated(folder):
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: len(data) // 2])
    return f"{SINGLE}: .*truncated"


def truncated_header(folder):
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:100])
    return f"{SINGLE}: .*truncated"


def not_safetensors(folder):
    (folder / SINGLE).write_bytes(struct.pack("<Q", 8) + b"[1, 2] 3")
    return f"{SINGLE}: .*not a safetensors file"


def wrong_shape(folder):
    rewrite(folder, lambda tensors: tensors.update({NORM: np.zeros(3, tensors[NORM].dtype)}))
    return rf"{SINGLE}: {NORM} has shape \(3,\), but config.json expects \(128,\)"


def unknown_key(folder):
    rewrite(folder, lambda tensors: tensors.update({"llm.model.norm.wait": tensors[NORM]}))
    return f"{SINGLE}: this model has no tensor llm.model.norm.wait"


def missing_key(folder):
    rewrite(folder, lambda tensors: tensors.pop(NORM))
    return f"tensor {NORM} is missing"


def index_outside(folder):
    index = json.loads((shard(folder) / INDEX).read_text())
    index["weight_map"][NORM] = "../secret.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    return f"{INDEX}: names '../secret.safetensors', which is outside the directory"


def index_disagrees(folder):
    index = json.loads((shard(folder) / INDEX).read_text())
    index["weight_map"]["llm.model.extra"] = SHARDS[0]
    (folder / INDEX).write_text(json.dumps(index))
    return f"{SHARDS[0]}: no tensor llm.model.extra"


def no_config(folder):
    (folder / "config.json").unlink()
    return "config.json: no such file"


@pytest.mark.parametrize(
    "damage",
    [missing_shard, truncated, truncated_header, not_safetensors, wrong_shape, unknown_key, missing_key,
     index_outside, index_disagrees, no_config],
)  # fmt: skip
def test_damaged_checkpoints(damage, tmp_path):
    message = damage(make(tmp_path / "source"))
    with pytest.raises(UserError, match=message) as error:
        from_torch(tmp_path / "source", tmp_path / "model")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_missing_part(tmp_path):
    make(tmp_path / "source", "released")
    (tmp_path / "source" / "mm_projector" / SINGLE).unlink()
    with pytest.raises(UserError, match=r"mm_projector: no model.safetensors; this part is missing"):
        from_torch(tmp_path / "source", tmp_path / "model")


def test_no_checkpoint_at_all(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config.json: no text_config"):
        from_torch(tmp_path, tmp_path / "model")
    with pytest.raises(UserError, match="without a source checkpoint, --vision_tower is required"):
        from_torch(None, tmp_path / "model", parts={"llm": tmp_path})


def test_commands_do_not_overwrite_and_exit_with_2(tmp_path):
    source, model = make(tmp_path / "source"), tmp_path / "model"
    model.mkdir()
    (model / "precious").write_text("x")
    for command in (("from_torch", source, model), ("to_torch", source, model, "--layout", "merged")):
        run = [sys.executable, "-m", f"conversion.{command[0]}", *map(str, command[1:])]
        done = subprocess.run(run, capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "already exists; nothing was overwritten" in done.stderr
    assert [path.name for path in model.iterdir()] == ["precious"]


def test_model_directory_that_contradicts_its_configuration(tmp_path):
    from_torch(make(tmp_path / "source"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 256
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"params: llm/layers/mlp/down_proj/kernel has shape \(3, 384, 128\)"):
        to_torch(tmp_path / "model", tmp_path / "back", layout="merged")
    assert parameters(tmp_path / "model")["llm/norm/scale"].shape == (128,)
    with pytest.raises(UserError, match="no parameters"):
        to_torch(tmp_path / "source", tmp_path / "back", layout="merged")
