"""A model from separate parts, with a tokenizer that has no media tokens."""

import json
import shutil

import numpy as np
import pytest
from transformers import (
    Qwen2AudioEncoderConfig,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers import Qwen2Config as HFQwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

import omnivinci_jax
from conversion.from_torch import from_torch
from conversion.layouts import read_part
from omnivinci_jax.errors import UserError
from omnivinci_jax.sequence.chat import PLACEHOLDERS
from tests.conversion.checkpoints import parameters
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders as published: Qwen2.5, a full SigLIP, a sound tower."""
    folder = tmp_path_factory.mktemp("parts")
    tokens = without_media(tiny_tokenizer().path.parent, folder / "llm")
    text = dict(vocab_size=tokens, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    Qwen2ForCausalLM(HFQwen2Config(**text, num_key_value_heads=1)).save_pretrained(folder / "llm")
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    siglip = SiglipConfig(
        text_config=SiglipTextConfig(**small, vocab_size=20).to_dict(),
        vision_config=SiglipVisionConfig(**small, image_size=28, patch_size=14).to_dict(),
    )
    SiglipModel(siglip).save_pretrained(folder / "vision_tower")
    sound = dict(d_model=16, encoder_ffn_dim=32, encoder_layers=2, encoder_attention_heads=2, max_source_positions=20)
    Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**sound)).save_pretrained(folder / "sound_tower")
    return {name: folder / name for name in ("llm", "vision_tower", "sound_tower")}


def without_media(source, folder) -> int:
    """Copies a tokenizer without its media tokens and returns its number of ids."""
    shutil.copytree(source, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    kept = [token for token in tokenizer["added_tokens"] if token["content"] not in PLACEHOLDERS.values()]
    tokenizer["added_tokens"] = kept
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return max([*tokenizer["model"]["vocab"].values(), *(token["id"] for token in kept)]) + 1


def test_parts_become_a_model(parts, tmp_path):
    notes = from_torch(None, tmp_path / "model", parts=parts)
    model, params, processor = omnivinci_jax.load(tmp_path / "model")
    tables, _ = read_part(parts["llm"], "llm")
    old = tables["llm.model.embed_tokens.weight"].read()
    rows = len(old) + len(PLACEHOLDERS)
    assert model.config.text.vocab_size == rows and model.config.s2_scales == (28, 56, 84)
    assert set(processor.tokenizer.media_ids.values()) == set(range(len(old), rows))
    table = np.asarray(params["llm"]["embed_tokens"]["embedding"])
    np.testing.assert_array_equal(table[: len(old)], old)
    np.testing.assert_allclose(table[len(old) : rows], np.tile(old.mean(0), (3, 1)), atol=1e-6)
    assert not table[rows:].any() and params["llm"]["lm_head"]["kernel"].shape == (128, table.shape[0])
    assert np.asarray(params["mm_projector"]["fc1"]["kernel"]).std() > 0
    text = "\n".join(notes)
    assert "initialised" in text and "mm_projector, omni_align, sound_mm_projector" in text
    assert f"grows from {len(old)} to {rows} rows" in text and "<vila/video> is new" in text
    assert "tensors that vision_tower does not use" in text


def test_a_part_must_fit_the_checkpoint(parts, golden, tmp_path):
    with pytest.raises(UserError, match=r"mm_projector.layers.2.weight has shape \(64, 384\)"):
        from_torch(golden / "checkpoint_merged", tmp_path / "model", parts={"llm": parts["llm"]})
    assert not (tmp_path / "model").exists()


def test_projectors_keep_their_types(parts, tmp_path):
    from_torch(None, tmp_path / "model", parts=parts, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in parameters(tmp_path / "model").values()} == {"bfloat16"}
