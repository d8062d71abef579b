"""Parameter counts of the published sizes, from abstract shapes."""

import math

import pytest

from configs.omnivinci_9b import DECODERS, model_config
from conversion.mapping import tensors
from omnivinci_jax.models.initialization import parameter_shapes
from omnivinci_jax.settings import load_config
from tests.tiny import REPOSITORY


def published(decoder: str) -> list:
    config = model_config(decoder)
    shapes = parameter_shapes(config)
    return list(tensors(config, shapes))


def test_parameters_of_the_published_checkpoint():
    assert sum(math.prod(tensor.shape) for tensor in published("7b")) == 8_742_888_688


@pytest.mark.parametrize("decoder, parameters", [("0.5b", 494_032_768), ("1.5b", 1_543_714_304), ("3b", 3_085_938_688)])
def test_parameters_of_qwen2_5(decoder, parameters):
    sizes = [math.prod(tensor.shape) for tensor in published(decoder) if tensor.name.startswith("llm.")]
    assert sum(sizes) == parameters


@pytest.mark.parametrize("decoder", DECODERS)
def test_configuration_file(decoder):
    settings = load_config([f"--config={REPOSITORY / 'configs' / 'omnivinci_9b.py'}:{decoder}"])
    assert settings.model == model_config(decoder)
