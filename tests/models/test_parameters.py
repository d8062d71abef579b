"""The declared roles of parameters, compared with the expected sets of leaves."""

import dataclasses

import numpy as np
import pytest
from flax import traverse_util

from omnivinci_jax.config import TimeEmbeddingConfig
from omnivinci_jax.models.initialization import abstract_params, parameter_roles, unbox_abstract
from omnivinci_jax.models.parameters import Role
from omnivinci_jax.settings import LoraConfig
from omnivinci_jax.train.optimizer import decay_mask, muon_dimensions
from omnivinci_jax.train.state import abstract_initial, split_trainable
from tests.tiny import tiny_config, tiny_settings

# A model with every kind of parameter.
CONFIG = tiny_config(audio_compression="conv", video_time=TimeEmbeddingConfig(scheme="learned"))


@pytest.fixture(scope="module")
def shapes() -> dict:
    """Shapes of the parameters, with an adapter beside every dense kernel."""
    lora = LoraConfig(rank=2, targets=(".*",))
    return unbox_abstract(abstract_initial(dataclasses.replace(tiny_settings(), model=CONFIG, lora=lora)))


@pytest.fixture(scope="module")
def roles(shapes) -> dict[str, Role]:
    return traverse_util.flatten_dict(parameter_roles(CONFIG, shapes), sep="/")


def leaf_name(path: str) -> str:
    return path.rpartition("/")[2]


def is_convolution(path: str) -> bool:
    return path.startswith(("sound_tower/conv", "sound_mm_projector/conv"))


def test_every_parameter_has_a_role(roles, shapes):
    assert roles.keys() == traverse_util.flatten_dict(shapes, sep="/").keys()
    names = {"kernel", "bias", "scale", "embedding", "query", "lora_a", "lora_b", "lora_scale"}
    assert {leaf_name(path) for path in roles} == names


def test_weight_decay_reaches_weights_and_embeddings(shapes):
    decayed = traverse_util.flatten_dict(decay_mask(CONFIG, shapes), sep="/")
    expected = {path: leaf_name(path) in ("kernel", "embedding", "lora_a", "lora_b") for path in decayed}
    assert decayed == expected


def test_muon_gets_the_last_two_axes_of_kernels_except_the_head(shapes):
    flat = traverse_util.flatten_dict(shapes, sep="/")
    chosen = traverse_util.flatten_dict(muon_dimensions(CONFIG, shapes), sep="/")
    expected = {
        path: (leaf.ndim - 2, leaf.ndim - 1) if leaf_name(path) == "kernel" and path != "llm/lm_head/kernel" else None
        for path, leaf in flat.items()
    }
    assert {
        path: None if axes is None else (axes.reduction_axis, axes.output_axis) for path, axes in chosen.items()
    } == expected


def test_frozen_parameters_are_cast_except_the_scale_of_adapters(roles):
    assert {path: role.cast_frozen for path, role in roles.items()} == {
        path: leaf_name(path) != "lora_scale" for path in roles
    }


def test_decoding_casts_all_except_norms_and_the_scale_of_adapters(roles):
    assert {path: role.cast_decoding for path, role in roles.items()} == {
        path: "norm" not in path and leaf_name(path) != "lora_scale" for path in roles
    }


def test_adapters_fit_beside_dense_kernels(roles):
    adaptable = {path for path, role in roles.items() if role.adaptable}
    assert adaptable == {path for path in roles if leaf_name(path) == "kernel" and not is_convolution(path)}
    assert {f"{path.rpartition('/')[0]}/lora_a" for path in adaptable} == {
        path for path in roles if leaf_name(path) == "lora_a"
    }


def test_with_adapters_only_their_factors_train(shapes):
    config = dataclasses.replace(tiny_settings(), model=CONFIG, lora=LoraConfig(rank=2))
    trainable, frozen = (traverse_util.flatten_dict(tree, sep="/") for tree in split_trainable(shapes, config))
    assert {leaf_name(path) for path in trainable} == {"lora_a", "lora_b"}
    assert {leaf_name(path) for path in frozen} == {"kernel", "bias", "scale", "embedding", "query", "lora_scale"}


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_that_multiply_count_in_flops(tied):
    config = CONFIG.replace(text=dataclasses.replace(CONFIG.text, tie_word_embeddings=tied))
    roles = traverse_util.flatten_dict(parameter_roles(config, abstract_params(config)), sep="/")
    expected = {path for path in roles if leaf_name(path) == "kernel"} | (
        {"llm/embed_tokens/embedding"} if tied else set()
    )
    assert {path for path, role in roles.items() if role.multiplies} == expected


def test_a_parameter_that_no_module_declares_is_an_error():
    with pytest.raises(KeyError, match="nothing"):
        parameter_roles(CONFIG, {"llm": {"nothing": np.zeros(1)}})
