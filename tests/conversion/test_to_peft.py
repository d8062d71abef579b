"""Adapters in PEFT's layout: names, shapes, and their effect on a PyTorch linear layer."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

from conversion.layouts import read_layout
from conversion.to_peft import to_peft
from conversion.to_torch import to_torch
from omnivinci_jax.errors import UserError
from omnivinci_jax.mesh.processes import atomic_directory
from omnivinci_jax.model_dir import save, save_params
from omnivinci_jax.models.initialization import unbox_abstract
from omnivinci_jax.settings import LoraConfig, to_mapping
from omnivinci_jax.train.export import export
from omnivinci_jax.train.state import abstract_initial, split_trainable
from tests.tiny import random_params, tiny_settings, tiny_tokenizer


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """Makes a run's work directory as training leaves it, with random adapters."""

    def make(*targets: str):
        folder = tmp_path_factory.mktemp("run")
        config = dataclasses.replace(
            tiny_settings(), start_from=str(folder / "base"), lora=LoraConfig(rank=2, alpha=6.0, targets=targets)
        )
        save(folder / "base", config.model, random_params(config.model), tiny_tokenizer())
        adapters, _ = split_trainable(unbox_abstract(abstract_initial(config)), config)
        random = np.random.default_rng(0)
        adapters = jax.tree.map(lambda x: jax.numpy.asarray(random.normal(size=x.shape), x.dtype), adapters)
        (folder / "run" / "checkpoints").mkdir(parents=True)
        (folder / "run" / "config.json").write_text(json.dumps(to_mapping(config)))
        with atomic_directory(folder / "run" / "adapters", replace=True) as part:
            save_params(part, adapters)
        return folder

    return make


def test_every_adapted_module_of_every_layer(make_run, tmp_path):
    folder = make_run("llm/.*", "mm_projector/.*", "sound_tower/layers/.*")
    to_peft(folder / "run", tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    arrays = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert config["peft_type"] == "LORA" and config["r"] == 2 and config["lora_alpha"] == 6.0
    names = {f"base_model.model.{module}.lora_{ab}.weight" for module in config["target_modules"] for ab in "AB"}
    assert names == arrays.keys() and len(config["target_modules"]) == 3 * 7 + 1 + 2 + 2 * 6
    for module in ("llm.model.layers.2.self_attn.k_proj", "llm.lm_head", "mm_projector.layers.2"):
        assert module in config["target_modules"]

    # A weight that PyTorch merges, W + B @ A * (alpha / r), equals that of our export.
    export(epath.Path(folder) / "run", epath.Path(tmp_path) / "model")
    for source, target in ((folder / "base", "before"), (tmp_path / "model", "after")):
        to_torch(source, tmp_path / target, layout="merged")
    before, after = (read_layout(tmp_path / name) for name in ("before", "after"))
    for name in before:
        expected, module = before[name].read(), name.removesuffix(".weight")
        if module in config["target_modules"]:
            a, b = (arrays[f"base_model.model.{module}.lora_{ab}.weight"] for ab in "AB")
            expected = expected + b @ a * 3.0
            assert a.shape[0] == b.shape[1] == 2
        np.testing.assert_allclose(after[name].read(), expected, atol=1e-5, err_msg=name)


def test_a_module_that_peft_cannot_adapt(make_run, tmp_path):
    folder = make_run("omni_align/.*")
    with pytest.raises(
        UserError, match="omni_align/audio/layers/self_attn/k_proj is not a published linear layer, so PEFT"
    ):
        to_peft(folder / "run", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
