"""Quantized models as compressed-tensors: exports come back bit for bit, and say how they are quantized."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from conversion.compressed import quantization_config
from conversion.from_torch import from_torch
from conversion.tensor_files import stored_tensors
from conversion.to_torch import to_torch
from conversion.verify import verify
from omnivinci_jax import model_dir
from omnivinci_jax.config_json import quantization_of, read_json
from omnivinci_jax.errors import UserError
from omnivinci_jax.quantize.recipes import Recipe
from tests.tiny import quantized_params, random_params, tiny_config, tiny_tokenizer

CONFIG = tiny_config(text=dataclasses.replace(tiny_config().text, vocab_size=500))  # padded to 512
RECIPE = Recipe("paper", modules=("(vision_tower|sound_tower)/layers/.*", "llm/.*"), group_size=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "paper"
    params = random_params(CONFIG)
    head = params["llm"]["lm_head"]["kernel"]
    params["llm"]["lm_head"]["kernel"] = head.at[:, 500:].set(0)  # as conversion pads it
    params["llm"]["embed_tokens"]["embedding"] = params["llm"]["embed_tokens"]["embedding"].at[500:].set(0)
    params = quantized_params(params, RECIPE, CONFIG)
    model_dir.save(path, CONFIG, params, tiny_tokenizer(), quantization=RECIPE.to_json())
    return path


@pytest.mark.parametrize("layout", ["merged", "released"])
def test_an_export_comes_back_bit_for_bit(folder, layout, tmp_path):
    to_torch(folder, tmp_path / "torch", layout=layout)
    from_torch(tmp_path / "torch", tmp_path / "back")
    jax.tree.map(
        np.testing.assert_array_equal, *(model_dir.load_model(path)[1] for path in (folder, tmp_path / "back"))
    )
    record = quantization_of(read_json(tmp_path / "back" / "config.json"))
    assert record == json.loads(json.dumps(RECIPE.to_json()))
    report = verify(folder, tmp_path / "torch")
    assert not report.differences and report.tensors > 100

    part = tmp_path / "torch" if layout == "merged" else tmp_path / "torch" / "llm"
    prefix = "llm." if layout == "merged" else ""
    tensors, name = stored_tensors(part), f"{prefix}model.layers.2.mlp.down_proj.weight"
    assert name not in tensors
    packed, scale, shape = (tensors[f"{name}_{end}"].read() for end in ("packed", "scale", "shape"))
    assert (packed.dtype, packed.shape, scale.shape, shape.tolist()) == ("int32", (128, 48), (128, 6), [128, 384])
    values = (packed[..., None].view(np.uint32) >> np.arange(0, 32, 4, dtype=np.uint32) & 15).astype(np.int8) - 8
    weight = model_dir.load_model(folder)[1]["llm"]["layers"]["mlp"]["down_proj"]["kernel"]
    ours = np.stack([weight.values[2] & 15, weight.values[2] >> 4], axis=-1).astype(np.int8) - 8
    np.testing.assert_array_equal(values.reshape(128, 384), ours.reshape(128, 384))
    assert tensors[f"{prefix}lm_head.weight_packed"].shape == (500, 16)

    config = json.loads((part / "config.json").read_text())["quantization_config"]
    formats = [group["format"] for group in config["config_groups"].values()]
    assert config["quant_method"] == "compressed-tensors" and config["quantization_status"] == "compressed"
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 64
    if layout == "merged":
        assert (config["format"], formats) == ("mixed-precision", ["pack-quantized", "int-quantized"])
        last = "vision_tower.vision_tower.encoder.layers.2.self_attn.q_proj"  # not computed, so not quantized
        assert last in config["ignore"] and "mm_projector.layers.2" in config["ignore"]
        assert last.replace("layers.2", "layers.1") not in config["ignore"]
    else:
        assert (config["format"], formats, config["ignore"]) == ("pack-quantized", ["pack-quantized"], [])
        vision = json.loads((tmp_path / "torch/vision_tower/config.json").read_text())["quantization_config"]
        assert vision["format"] == "int-quantized"
        assert vision["config_groups"]["group_0"]["input_activations"]["strategy"] == "token"


def test_the_targets_of_layers_are_one_expression():
    names = [f"model.layers.{n}.mlp.up_proj" for n in range(3)]
    config = quantization_config(dict.fromkeys(names, "fp8"), 128, [*names, "lm_head"])
    (group,) = config["config_groups"].values()
    assert group["targets"] == [r"re:model\.layers\.\d+\.mlp\.up_proj$"] and config["ignore"] == ["lm_head"]
    assert group["format"] == config["format"] == "float-quantized"
    assert group["weights"] == dict(num_bits=8, type="float", symmetric=True, strategy="channel", dynamic=False)


def test_a_layer_without_a_published_name_is_an_error(tmp_path):
    recipe = Recipe("w8a8", modules=("omni_align/.*",))
    params = quantized_params(random_params(CONFIG), recipe, CONFIG)
    model_dir.save(tmp_path / "model", CONFIG, params, tiny_tokenizer(), quantization=recipe.to_json())
    with pytest.raises(UserError, match=r"omni_align/.* is quantized, but no published layer; quantize without it"):
        to_torch(tmp_path / "model", tmp_path / "torch", layout="merged")
