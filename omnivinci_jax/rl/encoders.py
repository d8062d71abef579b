"""The encoders that do not train: they run once for each prompt, for all its answers and in every pass."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Num

from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.rl.prompts import LoadedPrompt
from omnivinci_jax.sequence.assemble import EmptyMedia, empty_media

_TILES, _WINDOWS = 32, 8  # encoded at a time


def encoded_media(model: OmniVinci, trainable: dict) -> EmptyMedia:
    """Returns what the batches of a run hold: features of the encoders without trainable parameters, else raw media."""
    tiles, windows = (
        None if tower in trainable else np.dtype(model.compute.dtype) for tower in ("vision_tower", "sound_tower")
    )
    return empty_media(model.config, tiles, windows)


def encode_prompts(
    model: OmniVinci, params: dict, prompts: Sequence[LoadedPrompt | None], media: EmptyMedia, devices: int = 1
) -> list[LoadedPrompt | None]:
    """Replaces the prompts' raw media by features, in host memory, where `media` has features.

    Args:
        model: the module.
        params: its parameters.
        prompts: as they were loaded; None is a prompt that could not be read.
        media: see `encoded_media`.
        devices: of the mesh in force.
    """
    present = [prompt for prompt in prompts if prompt]
    raw = empty_media(model.config)
    for field, tower, count in (("tiles", "vision_tower", _TILES), ("windows", "sound_tower", _WINDOWS)):
        empty = getattr(media, field)
        if empty.shape == getattr(raw, field).shape:
            continue
        run = partial(_encode, model, tower, {tower: params[tower]})
        arrays = _in_pieces(run, [getattr(prompt, field) for prompt in present], -(-count // devices) * devices, empty)
        present = [prompt._replace(**{field: array}) for prompt, array in zip(present, arrays, strict=True)]
    encoded = iter(present)
    return [next(encoded) if prompt else None for prompt in prompts]


@partial(jax.jit, static_argnums=(0, 1))
def _encode(model: OmniVinci, tower: str, params: dict, items: Num[Array, "n ..."]) -> Float[Array, "n S C"]:
    def encode(module: OmniVinci, items: Array) -> Array:
        return getattr(module, tower)(items)

    found: Any = model.apply({"params": params}, items, method=encode)
    return found


def _in_pieces(run: Any, arrays: list[np.ndarray], count: int, empty: np.ndarray) -> list[np.ndarray]:
    """Returns `run` of each array; `run` gets `count` items at a time, the last of them padding."""
    if not arrays:
        return []
    items, found = np.concatenate(arrays), [empty]
    for first in range(0, len(items), count):
        piece = items[first : first + count]
        padded = np.pad(piece, ((0, count - len(piece)), *[(0, 0)] * (piece.ndim - 1)))
        found.append(np.asarray(run(padded))[: len(piece)])
    return np.split(np.concatenate(found), np.cumsum([len(array) for array in arrays])[:-1])
