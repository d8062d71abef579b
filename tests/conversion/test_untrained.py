"""Modules that were only initialised: from_torch lists them, to_torch leaves them out, from_torch draws them again."""

import json

import numpy as np
import pytest

from conversion.from_torch import from_torch
from conversion.layouts import read_layout
from conversion.stored_model import open_model
from conversion.to_torch import main, to_torch
from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.model_dir import save
from tests.conversion.checkpoints import different, make, parameters
from tests.tiny import random_params, tiny_config, tiny_tokenizer

CONFIG = tiny_config(audio_compression="conv")


def untrained(folder):
    return json.loads((folder / "config.json").read_text())["omnivinci_jax"].get("untrained")


def test_what_a_source_does_not_hold_is_listed_and_not_exported(tmp_path, capsys):
    make(tmp_path / "source", "merged", "F32", CONFIG)  # published tensors alone
    (note,) = (note for note in from_torch(tmp_path / "source", tmp_path / "model") if "initialised" in note)
    assert note.endswith(": omni_align, sound_mm_projector/conv")
    assert untrained(tmp_path / "model") == ["omni_align", "sound_mm_projector/conv"]
    assert main([str(tmp_path / "model"), str(tmp_path / "back"), "--layout", "merged"]) == 0
    assert "no training has touched them: omni_align, sound_mm_projector/conv\n" in capsys.readouterr().out
    assert different(tmp_path / "source", tmp_path / "back") == []
    assert not (tmp_path / "back" / "omnivinci_jax").exists()
    assert untrained(tmp_path / "back") == ["omni_align", "sound_mm_projector/conv"]


def test_an_untrained_part_is_initialised_again(tmp_path):
    params = random_params(CONFIG)
    table = params["llm"]["embed_tokens"]["embedding"]
    params["llm"]["embed_tokens"]["embedding"] = table.at[CONFIG.text.vocab_size :].set(0)
    save(tmp_path / "model", CONFIG, params, tiny_tokenizer(), ["mm_projector"])
    for layout in ("merged", "released"):
        to_torch(tmp_path / "model", tmp_path / layout, layout=layout)
        found = read_layout(tmp_path / layout, ["mm_projector"])
        assert {name.split(".")[0] for name in found} == {
            "llm", "vision_tower", "sound_tower", "sound_mm_projector", "omnivinci_jax",
        }  # fmt: skip
    with pytest.raises(UserError, match=r"mm_projector: no model.safetensors; this part is missing"):
        read_layout(tmp_path / "released")
    notes = from_torch(tmp_path / "released", tmp_path / "again")
    assert "initialised, because the source has no such tensors: mm_projector" in notes
    assert untrained(tmp_path / "again") == ["mm_projector"]
    before, after = parameters(tmp_path / "model"), parameters(tmp_path / "again")
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        assert np.array_equal(after[path], leaf) == (not path.startswith("mm_projector/")), path


def test_nothing_to_export_and_unknown_modules(tmp_path):
    params = random_params(CONFIG)
    save(tmp_path / "model", CONFIG, params, tiny_tokenizer(), params)
    with pytest.raises(UserError, match="model: no training has touched its parameters; there is nothing to export"):
        to_torch(tmp_path / "model", tmp_path / "torch", layout="merged")
    root = json.loads((tmp_path / "model" / "config.json").read_text())
    root["omnivinci_jax"]["untrained"] = ["omni_aline"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(root))
    with pytest.raises(ConfigError, match=r"config.json: omnivinci_jax.untrained: 'omni_aline': no such module"):
        open_model(tmp_path / "model")
    assert not (tmp_path / "torch").exists()
