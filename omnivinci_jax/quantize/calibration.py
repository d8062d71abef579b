"""Calibration data, and what each layer sees of it."""

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

ROWS = 64
TOKENS = 512  # a random sample of about so many tokens decides between candidates


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
    """Reads ROWS rows of packed conversations from the start of a data file, one a batch.

    Raises:
        UserError: the file cannot be read, or has no media.
    """
    index = build_index(open_records(path), processor, NO_LIMIT, "skip", quiet=True)
    check_skipped(index.problems, len(index) + len(index.problems), 0.1, path)
    if not len(index):
        raise UserError(f"{path}: no usable conversation: {index.problems[0]}")
    for column, media in ((1, "images or video"), (2, "sound")):
        if not index.sizes[:, column].any():
            raise UserError(f"{path}: the conversations have no {media}; calibrate with what the model will see")
    settings = whole_file(index, rows=1)
    plan = plan_all(index, settings)[:ROWS]
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
    outputs: list[Inputs] = []
    seen: dict[str, list[tuple[int, Statistics]]] = {}
    share, random = -(-TOKENS // len(batches)), np.random.default_rng(0)
    for inputs in batches:
        output, batch_seen = run_layer(layer, params, inputs)
        outputs.append(output)
        used = np.asarray(inputs.used)
        if not used.any():
            continue
        chosen = np.sort(random.permutation(used.sum())[:share])
        for path, x in batch_seen.items():
            tokens = np.asarray(x, np.float32)[used]
            absolute = np.abs(tokens)
            statistics = Statistics(absolute.mean(axis=0), absolute.max(axis=0), tokens[chosen])
            seen.setdefault(path, []).append((len(tokens), statistics))
    return outputs, {path: _merge(parts) for path, parts in seen.items()}


def _merge(parts: list[tuple[int, Statistics]]) -> Statistics:
    """Merges the statistics of batches, given the number of tokens of each."""
    counts, statistics = zip(*parts, strict=True)
    means, largest, samples = zip(*statistics, strict=True)
    return Statistics(np.average(means, axis=0, weights=counts), np.max(largest, axis=0), np.concatenate(samples))
