"""What cannot be converted is refused in one line that names the file, the key and the model_type."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    LlamaConfig,
    PaliGemmaConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Siglip2Config,
)

from conversion.layouts import drop_tied_head, read_layout, read_part
from conversion.source import open_source
from conversion.tensor_files import SINGLE
from omnivinci_jax.errors import UserError
from tests.conversion.checkpoints import make
from tests.conversion.published import TEXT, qwen2_decoder

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32_768}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    "part, config, message",
    [
        ("llm", Qwen3Config(), "config.json: model_type is 'qwen3'; supported: 'qwen2', 'llama'"),
        (
            "llm",
            Qwen2Config(**TEXT, rope_parameters=YARN),
            r"config.json \(model_type 'qwen2'\): rope_parameters.rope_type is 'yarn'; supported: 'default'",
        ),
        (
            "llm",
            LlamaConfig(**TEXT, rope_parameters=LLAMA3),
            r"config.json \(model_type 'llama'\): rope_parameters.rope_type is 'llama3'; supported: 'default'",
        ),
        (
            "llm",
            LlamaConfig(**TEXT, attention_bias=True),
            r"config.json \(model_type 'llama'\): attention_bias is True; supported: False",
        ),
        (
            "llm",
            LlamaConfig(**TEXT, head_dim=32),
            r"\(model_type 'llama'\): head_dim is 32; supported: hidden_size / num_attention_heads = 64 / 4",
        ),
        ("llm", PaliGemmaConfig(), "config.json: text_config: model_type is 'gemma'; supported: 'qwen2', 'llama'"),
        (
            "vision_tower",
            Siglip2Config(),
            "config.json: vision_config: model_type is 'siglip2_vision_model'; supported: 'siglip_vision_model'",
        ),
        ("sound_tower", Qwen2Config(), "model_type is 'qwen2'; supported: 'qwen2_audio_encoder', 'audioflamingo3_enc"),
    ],
)  # fmt: skip
def test_architectures(part, config, message, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        open_source(make(tmp_path / "whole"), {part: tmp_path})
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path))


def test_rope_scaling_of_transformers_4(tmp_path):
    config = qwen2_decoder().to_dict() | {"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"\(model_type 'qwen2'\): rope_scaling.type is 'yarn'; supported: 'default'"):
        open_source(make(tmp_path / "whole"), {"llm": tmp_path})


def test_pickled_files(tmp_path):
    decoder = Qwen2ForCausalLM(qwen2_decoder())
    decoder.config.save_pretrained(tmp_path)
    torch.save(decoder.state_dict(), tmp_path / "pytorch_model.bin")
    message = r"pytorch_model.bin: .bin files are pickled code and are not read; .*\(model_type 'qwen2'\)"
    with pytest.raises(UserError, match=message) as error:
        read_part(tmp_path, "llm")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        read_layout(tmp_path)
    whole = make(tmp_path / "whole", "released")
    (whole / "llm" / SINGLE).rename(whole / "llm" / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(UserError, match=r"llm/pytorch_model-00001-of-00002.bin: .bin files are pickled"):
        read_layout(whole)


def test_a_tied_head_must_equal_the_embedding(tmp_path):
    Qwen2ForCausalLM(qwen2_decoder(tied=True)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    head = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors | {"lm_head.weight": head}, tmp_path / SINGLE)
    found, unused = read_part(tmp_path, "llm")
    drop_tied_head(found)
    assert "llm.lm_head.weight" not in found and "llm.model.embed_tokens.weight" in found and unused == []

    head[95, 63] = np.nextafter(head[95, 63], np.float32(2))
    save_file(tensors | {"lm_head.weight": head}, tmp_path / SINGLE)
    message = (
        r"model.safetensors: lm_head.weight differs from embed_tokens.weight, but tie_word_embeddings is True in "
        r"config.json \(model_type 'qwen2'\)"
    )
    with pytest.raises(UserError, match=message) as error:
        open_source(make(tmp_path / "whole"), {"llm": tmp_path})
    assert "\n" not in str(error.value)


def test_parts_that_are_not_there(tmp_path):
    Qwen2Model(qwen2_decoder()).save_pretrained(tmp_path)
    whole = make(tmp_path / "whole")
    with pytest.raises(UserError, match=f"{tmp_path}: no lm_head.weight, but tie_word_embeddings is False") as error:
        open_source(whole, {"llm": tmp_path})
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=f"{tmp_path}: 0 tensors are named …embeddings.patch_embedding.weight"):
        read_part(tmp_path, "vision_tower")
    released = make(tmp_path / "released", "released")
    tensors = load_file(released / "llm" / SINGLE)
    save_file(tensors | {"score.weight": np.zeros(3, np.float32)}, released / "llm" / SINGLE)
    with pytest.raises(UserError, match=r"llm: this model has no tensor score\.weight"):
        read_layout(released)
