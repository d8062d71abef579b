"""The tiny model's configuration and tokenizer, which many tests use."""

import os
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.models.initialization import abstract_boxes, unbox_abstract
from omnivinci_jax.models.quantized import quantize
from omnivinci_jax.quantize.recipes import Recipe
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import TrainConfig, load_config

REPOSITORY = Path(__file__).parents[1]
CONFIG = REPOSITORY / "configs" / "tiny.py"


@cache
def tiny_settings() -> TrainConfig:
    return load_config([f"--config={CONFIG}"])


def tiny_config(**changes) -> OmniVinciConfig:
    return tiny_settings().model.replace(**changes)


def random_like(boxes: dict, seed: int = 0) -> dict:
    """Random parameters with the shapes in `boxes`, drawn by NumPy because JAX takes seconds to compile the draws."""
    random = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        width = leaf.shape[-2] if leaf.ndim > 1 else 2500
        value = random.normal(scale=width**-0.5, size=leaf.shape)
        return jnp.asarray(value + path[-2].key.endswith("scale"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, boxes)


def random_boxes(config: OmniVinciConfig, seed: int = 0) -> dict:
    return random_like(abstract_boxes(config), seed)


def random_params(config: OmniVinciConfig, seed: int = 0) -> dict:
    return unbox_abstract(random_boxes(config, seed))


def quantized_params(params: dict, recipe: Recipe, config: OmniVinciConfig) -> dict:
    """Rounds the kernels that a recipe names to the nearest."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, scheme in recipe.schemes(config).items():
        flat[path] = quantize(flat[path], scheme, recipe.group_size)
    return traverse_util.unflatten_dict(flat, sep="/")


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(REPOSITORY / "configs" / "tiny_tokenizer")


def virtual_devices(count: int) -> dict[str, str]:
    """Returns the environment variable that gives a process so many CPU devices."""
    return {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"}


class _NoEndToken(Tokenizer):
    def __init__(self):
        self.eos_id = -1


class NoEnd(Processor):
    """A processor without an end token, so that answers reach their maximum length."""

    def __init__(self):
        object.__setattr__(self, "tokenizer", _NoEndToken())
