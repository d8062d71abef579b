"""Rescaling of channels that leaves the function of a layer unchanged.

A channel can be divided by s where it is produced and multiplied by s where it is used. AWQ and SmoothQuant choose s
so that the kernels that use it quantize better; no scale remains for the engine to apply.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
from flax import traverse_util
from jaxtyping import Float

from omnivinci_jax.config import OmniVinciConfig, Qwen2Config


class Fold(NamedTuple):
    """A module that produces channels (a norm or a dense layer), and the dense layers that use them, by path."""

    source: str
    targets: tuple[str, ...]

    @property
    def after_norm(self) -> bool:
        """Whether the source is a norm."""
        return "norm" in self.source


_QKV = tuple(f"self_attn/{name}_proj" for name in "qkv")


def folds(stack: str, config: OmniVinciConfig) -> tuple[Fold, ...]:
    """Returns the folds of each layer of a stack, in order.

    Under grouped heads the channels of v are not those of o's input, so v is not the source of a fold.
    """
    if stack == "vision_tower/layers":
        return Fold("layer_norm1", _QKV), Fold("layer_norm2", ("mlp/fc1",))
    if stack == "sound_tower/layers":
        return Fold("self_attn_layer_norm", _QKV), Fold("final_layer_norm", ("fc1",))
    return (
        Fold("input_layernorm", _QKV),
        *([Fold("self_attn/v_proj", ("self_attn/o_proj",))] if _one_key_per_query(config.text) else []),
        Fold("post_attention_layernorm", ("mlp/gate_proj", "mlp/up_proj")),
        Fold("mlp/up_proj", ("mlp/down_proj",)),
    )


def fold(layer: dict, where: Fold, scales: Float[np.ndarray, " channels"]) -> dict:
    """Returns a layer's parameters with the channels of a fold rescaled; each keeps its type."""
    flat = dict(cast("dict[str, np.ndarray]", traverse_util.flatten_dict(layer, sep="/")))

    def change(path: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
        if path in flat:
            flat[path] = function(np.asarray(flat[path], np.float32)).astype(flat[path].dtype)

    for name in ("scale", "kernel", "bias"):
        change(f"{where.source}/{name}", lambda x: x / scales)
    for target in where.targets:
        change(f"{target}/kernel", lambda x: x * scales[:, None])
    return traverse_util.unflatten_dict(flat, sep="/")


def _one_key_per_query(text: Qwen2Config) -> bool:
    return text.num_attention_heads == text.num_key_value_heads
