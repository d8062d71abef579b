"""A tiny model with random parameters: its answers are meaningless but always the same."""

from pathlib import Path

import jax
import pytest

from omnivinci_jax.data.processor import Processor
from omnivinci_jax.generate.assistant import Assistant
from omnivinci_jax.models.omnivinci import OmniVinci
from tests.tiny import random_params, tiny_config, tiny_tokenizer


def tiny_assistant(**changes) -> Assistant:
    model = OmniVinci(tiny_config(**changes))
    params = random_params(model.config)
    # With the usual small weights every answer repeats one token.
    params = jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, params)
    return Assistant(model, params, Processor(model.config, tiny_tokenizer()))


@pytest.fixture(scope="session")
def assistant() -> Assistant:
    return tiny_assistant()


@pytest.fixture(scope="session")
def clips(av_world) -> list[Path]:
    return sorted((av_world / "clips").glob("train*"))
