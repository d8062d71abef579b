"""`omnivinci quantize`: what it writes, resuming, loading by other commands, and one-line errors."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from omnivinci_jax import cli, model_dir
from omnivinci_jax.config_json import quantization_of, read_json
from omnivinci_jax.models.quantized import dequantize, is_quantized
from omnivinci_jax.quantize import model as quantize_model
from tests.tiny import random_params, tiny_config, tiny_tokenizer

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(CONFIG))
    model_dir.save(path, CONFIG, params, tiny_tokenizer(), untrained=["omni_align"])
    return path


def quantize(capsys, folder: Path, out: Path, *flags: object) -> tuple[int, str]:
    code = cli.main(["quantize", "--model", str(folder), "--out", str(out), *map(str, flags)])
    return code, capsys.readouterr().err


def error(capsys, folder: Path, out: Path, *flags: object) -> str:
    code, err = quantize(capsys, folder, out, *flags)
    assert code == 2 and err.count("\n") == 1, err
    assert not out.exists()
    return err


def params_of(folder: Path) -> dict:
    return model_dir.load_model(folder)[1]


def test_rounding_resumes_after_the_finished_layers(capsys, folder, tmp_path, monkeypatch):
    flags = "--recipe", "paper", "--method", "rtn", "--modules", ".*/layers/.*", "--modules", "llm/lm_head"
    assert quantize(capsys, folder, tmp_path / "whole", *flags)[0] == 0

    done, real = [], quantize_model.quantize_layer

    def killed(*args):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(args)
        return real(*args)

    monkeypatch.setattr(quantize_model, "quantize_layer", killed)
    assert quantize(capsys, folder, tmp_path / "resumed", *flags)[0] == 130
    assert not (tmp_path / "resumed").exists()
    monkeypatch.setattr(quantize_model, "quantize_layer", lambda *args: done.append(args) or real(*args))
    assert quantize(capsys, folder, tmp_path / "resumed", *flags)[0] == 0
    assert len(done) == 2 + 2 + 3  # layers, each once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed", "whole"]

    original, whole, resumed = params_of(folder), params_of(tmp_path / "whole"), params_of(tmp_path / "resumed")
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    schemes = set()

    def check(path, before, after):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert is_quantized(after) == (("layers/" in name or "lm_head" in name) and name.endswith("kernel")
                                       and "last_layer" not in name and "omni_align" not in name), name  # fmt: skip
        if is_quantized(after):
            schemes.add((name.split("/")[0], after.scheme))
            step = after.scales.max() * (0.5 if after.scheme != "w4a16" else 0.501)
            assert np.abs(dequantize(after) - before.astype(jnp.float32)).max() <= step * 1.001
        else:
            np.testing.assert_array_equal(after, before)

    jax.tree_util.tree_map_with_path(check, original, whole)
    assert schemes == {("vision_tower", "w8a8"), ("sound_tower", "w8a8"), ("llm", "w4a16")}
    record = quantization_of(root := read_json(tmp_path / "whole" / "config.json"))
    assert record["name"] == "paper" and record["method"] == "rtn" and record["group_size"] == 128
    assert root["omnivinci_jax"]["untrained"] == ["omni_align"]
    message = error(capsys, tmp_path / "whole", tmp_path / "twice", "--method", "rtn")
    assert "already quantized (recipe paper); quantize the model that it was made from" in message


def test_calibration(capsys, folder, av_world, tmp_path):
    assert quantize(capsys, folder, tmp_path / "out", "--calibration", av_world / "val.jsonl")[0] == 0
    original, params = params_of(folder), params_of(tmp_path / "out")
    places = ("vision_tower", "layer_norm1", "self_attn/q_proj"), ("llm", "input_layernorm", "self_attn/q_proj")
    for part, norm, dense in (*places, ("sound_tower", "final_layer_norm", "fc1")):
        before, after = (traverse_util.flatten_dict(tree[part]["layers"], sep="/") for tree in (original, params))
        scales = before[f"{norm}/scale"].astype(jnp.float32) / after[f"{norm}/scale"].astype(jnp.float32)
        expected = before[f"{dense}/kernel"].astype(jnp.float32) * scales[..., None]
        actual = dequantize(after[f"{dense}/kernel"])
        assert np.abs(scales - 1).max() > 0.05, part
        assert np.linalg.norm(actual - expected) < 0.15 * np.linalg.norm(expected), part
        assert before[f"{norm}/scale"].dtype == after[f"{norm}/scale"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "recipe paper needs --calibration FILE.jsonl"),
        (("--recipe", "fp8", "--calibration", "x.jsonl"), "recipe fp8 rounds to nearest and reads no data"),
        (("--method", "rtn", "--modules", "llm/layer/.*"), "'llm/layer/.*' matches no dense layer; paths look like "),
        (("--method", "rtn", "--modules", "("), "'(' is not a regular expression"),
        (("--method", "rtn", "--group_size", "96"), "its width 128 is not a multiple of the group of 96"),
        (("--method", "rtn", "--group_size", "12"), "--group_size is 12: must be a multiple of 8"),
        (("--calibration", "missing.jsonl"), "missing.jsonl: no such file"),
    ],
)
def test_mistakes(capsys, folder, tmp_path, flags, message):
    assert message in error(capsys, folder, tmp_path / "out", *flags)


def test_calibration_data_without_media(capsys, folder, tmp_path):
    data = tmp_path / "text.jsonl"
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    data.write_text(json.dumps({"messages": chat}) + "\n")
    expected = "the conversations have no images or video; calibrate with what the model will see"
    assert expected in error(capsys, folder, tmp_path / "out", "--calibration", data)
