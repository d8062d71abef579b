"""Calibration data, and what each layer sees of it."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from omnivinci_jax.data.index import build_index
from omnivinci_jax.data.loader import NO_LIMIT, plan_all, read_batches, whole_file
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import check_skipped
from omnivinci_jax.data.sources import open_records
from omnivinci_jax.errors import UserError
from omnivinci_jax.models.attention import rope_cos_sin
from omnivinci_jax.models.layers import Dense
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.siglip import SiglipTower
from omnivinci_jax.paths import AnyPath
from omnivinci_jax.sequence.batch import Batch

CONVERSATIONS = 64
TOKENS = 512  # a random sample of so many tokens decides between candidates


class Inputs(NamedTuple):
    """The input of a stack of layers for one batch. shared: further arguments of every layer; used: not padding."""

    x: Float[Array, "B T D"]
    shared: tuple[Any, ...]
    used: Bool[Array, "B T"]


class Statistics(NamedTuple):
    """What a dense layer sees: the mean and the largest absolute value of each input, and a sample of its tokens."""

    mean: Float[np.ndarray, " in"]
    largest: Float[np.ndarray, " in"]
    sample: Float[np.ndarray, "n in"]


def read_calibration(path: AnyPath, processor: Processor) -> list[Batch]:
    """Reads the first CONVERSATIONS conversations of a data file, one a batch.

    Raises:
        UserError: the file cannot be read, or has no media.
    """
    index = build_index(open_records(path), processor, NO_LIMIT, "skip", quiet=True)
    check_skipped(index.problems, len(index) + len(index.problems), 0.1, path)
    sizes = index.sizes[:CONVERSATIONS]
    if not len(sizes):
        raise UserError(f"{path}: no usable conversation: {index.problems[0]}")
    if not sizes[:, 1].any() or not sizes[:, 2].any():
        missing = "images or video" if not sizes[:, 1].any() else "sound"
        raise UserError(
            f"{path}: the first {len(sizes)} conversations have no {missing}; calibrate with the media that the model "
            "will see"
        )
    settings = whole_file(index, rows=1)
    plan = plan_all(index, settings)[:CONVERSATIONS]
    loaded = read_batches(index, plan, processor, settings, [0], start=0, stop=len(plan))
    return [batch for batch, _ in loaded]


@partial(jax.jit, static_argnums=0)
def stack_inputs(model: OmniVinci, params: dict, batch: Batch) -> dict[str, Inputs]:
    """Returns the input of every stack of layers, by its path; `params` may lack the decoder's layers."""
    tiles = rearrange(batch.tiles, "g n ... -> (g n) ...")
    windows = rearrange(batch.windows, "g w f m -> (g w) f m")
    tower = SiglipTower(model.config.vision)
    # A scan hides what enters it: make its layers the identity.
    with nn.intercept_methods(_skip_layers):
        vision = cast("Array", tower.apply({"params": params["vision_tower"]}, tiles))
    seen: dict[tuple[str, ...], tuple] = {}

    def record(call, args, kwargs, context):
        path = context.module.path
        if path == ("llm",) and context.method_name == "__call__":
            seen[path] = args
            return args[0]
        result = call(*args, **kwargs)
        if path == ("sound_tower", "conv2"):
            seen[path] = (result,)
        return result

    with nn.intercept_methods(record):
        model.apply({"params": params}, batch)
    sound = jax.nn.gelu(seen["sound_tower", "conv2"][0], approximate=False)
    sound += params["sound_tower"]["embed_positions"]["embedding"]
    text, positions, segment_ids = seen["llm",]
    rope = rope_cos_sin(positions, model.config.text.head_dim, model.config.text.rope_theta)
    return {
        "vision_tower/layers": Inputs(vision, (), _used(vision, tiles != 0)),
        "sound_tower/layers": Inputs(sound, (), _used(sound, windows != 0)),
        "llm/layers": Inputs(text, (rope, segment_ids), segment_ids > 0),
    }


@partial(jax.jit, static_argnums=0)
def run_layer(layer: nn.Module, params: dict, inputs: Inputs) -> tuple[Inputs, dict[str, Array]]:
    """Runs one layer; returns the input of the next one, and the input of each dense layer by its path."""
    seen: dict[str, Array] = {}

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, Dense) and context.method_name == "__call__":
            seen["/".join(context.module.path)] = args[0]
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        x, _ = layer.apply({"params": params}, inputs.x, *inputs.shared)
    return inputs._replace(x=x), seen


def _skip_layers(call, args, kwargs, context):
    return (args[0], None) if context.module.path == ("layers",) else call(*args, **kwargs)


def _used(x: Array, present: Array) -> Array:
    """Returns which features are of a tile or window that is not all zeros, which is padding."""
    return jnp.broadcast_to(present.reshape(len(x), -1).any(axis=1, keepdims=True), x.shape[:2])


def observe(layer: nn.Module, params: dict, batches: list[Inputs]) -> tuple[list[Inputs], dict[str, Statistics]]:
    """Runs one layer on all batches; returns the inputs of the next one, and the statistics of each dense layer."""
    outputs, seen = [], []
    for inputs in batches:
        output, batch_seen = run_layer(layer, params, inputs)
        used = np.asarray(inputs.used)
        outputs.append(output)
        seen.append({path: np.asarray(x, np.float32)[used] for path, x in batch_seen.items()})
    return outputs, {path: _statistics(batch[path] for batch in seen) for path in seen[0]}


def _statistics(parts: Iterator[np.ndarray]) -> Statistics:
    tokens = np.concatenate(list(parts))
    chosen = np.random.default_rng(0).permutation(len(tokens))[:TOKENS]
    absolute = np.abs(tokens)
    return Statistics(absolute.mean(axis=0), absolute.max(axis=0), tokens[np.sort(chosen)])
