"""The modules that no training has touched: those of a start model, and what gradients and adapters clear."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from flax import traverse_util

from omnivinci_jax.config_json import write_config
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.settings import OptimizerConfig
from omnivinci_jax.train.best_model import BestModel
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.state import TrainState, split
from omnivinci_jax.train.untrained import initially_untrained, without_adapted, without_trained
from tests.tiny import tiny_settings, tiny_tokenizer

MODULES = ("llm", "mm_projector", "omni_align", "sound_mm_projector", "sound_tower", "vision_tower")
LISTED = ("omni_align", "sound_mm_projector/conv")


@pytest.fixture
def start(tmp_path) -> epath.Path:
    write_config(tiny_settings().model, tmp_path / "config.json", untrained=LISTED)
    return epath.Path(tmp_path)


def test_a_new_model_is_untrained():
    assert sorted(initially_untrained(tiny_settings(), None)) == sorted(MODULES)


@pytest.mark.parametrize(
    "modules, expected",
    [
        ((), LISTED),
        (
            ("llm", "sound_mm_projector"),
            ("mm_projector", "omni_align", "sound_mm_projector/conv", "sound_tower", "vision_tower"),
        ),
        (tuple(module for module in MODULES if module != "omni_align"), LISTED),
    ],
)
def test_a_start_model_lists_its_untrained_modules(modules, expected, start):
    config = dataclasses.replace(tiny_settings(), start_from=str(start), start_modules=modules)
    assert tuple(sorted(initially_untrained(config, start))) == expected


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradients_clear_a_module(optimizer):
    config = tiny_settings()
    settings = OptimizerConfig(name=optimizer, weight_decay=0.1)  # decay changes parameters, but trains nothing
    update = make_optimizer(settings, 10, config.model)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), abstract_params(config.model))
    params = {"llm": {"norm": params["llm"]["norm"]}} | {name: params[name] for name in MODULES[1:4]}
    trainable, frozen = split(params, ("mm_projector/.*",))
    flat = traverse_util.flatten_dict(trainable, sep="/")
    reached = ("llm/norm/scale", "sound_mm_projector/fc2/bias")
    gradients = {path: jnp.full_like(leaf, path in reached) for path, leaf in flat.items()}
    gradients = traverse_util.unflatten_dict(gradients, sep="/")
    _, opt_state = jax.jit(update.update)(gradients, update.init(trainable), trainable)
    state = TrainState(jnp.ones((), jnp.int32), trainable, frozen, opt_state)
    assert without_trained(MODULES[:4], state) == ("mm_projector", "omni_align")
    assert without_trained((), state) == ()
    assert without_trained(("sound_mm_projector/fc1", "llm/norm"), state) == ("sound_mm_projector/fc1",)


def test_the_best_model_lists_what_no_gradient_reached(tmp_path):
    config, workdir = tiny_settings(), epath.Path(tmp_path)
    weight = {"norm": {"scale": jnp.ones(3)}}
    state = TrainState(0, {"llm": weight}, {"omni_align": weight}, {"mu": {"llm": weight}})
    BestModel(workdir, config, tiny_tokenizer(), ("llm", "omni_align")).keep(state)
    config = dataclasses.replace(config, start_from=str(workdir))
    assert initially_untrained(config, workdir / "model") == ("omni_align",)


def test_adapters_clear_a_module():
    def adapter(b: float) -> dict:
        return {"lora_a": jnp.ones((4, 2)), "lora_b": jnp.full((2, 4), b), "lora_scale": jnp.ones(())}

    adapters = {"mm_projector": {"fc1": adapter(0.5), "fc2": adapter(0.0)}, "omni_align": {"q": adapter(0.0)}}
    assert without_adapted(("llm", "mm_projector", "omni_align"), adapters) == ("llm", "omni_align")
    assert without_adapted(("mm_projector/fc2",), adapters) == ("mm_projector/fc2",)
