"""The tiny model's configuration and tokenizer, which many tests use."""

from functools import cache
from pathlib import Path

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import TrainConfig, load_config

REPOSITORY = Path(__file__).parents[1]
CONFIG = REPOSITORY / "configs" / "tiny.py"


@cache
def tiny_settings() -> TrainConfig:
    return load_config([f"--config={CONFIG}"])


def tiny_config(**changes) -> OmniVinciConfig:
    return tiny_settings().model.replace(**changes)


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(REPOSITORY / "configs" / "tiny_tokenizer")


class _NoEndToken(Tokenizer):
    def __init__(self):
        self.eos_id = -1


class NoEnd(Processor):
    """A processor without an end token, so that answers reach their maximum length."""

    def __init__(self):
        object.__setattr__(self, "tokenizer", _NoEndToken())
