"""Folding leaves the function unchanged; AWQ and SmoothQuant beat rounding where a few channels are large."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from omnivinci_jax.models.af_whisper import AFWhisperLayer
from omnivinci_jax.models.attention import rope_cos_sin
from omnivinci_jax.models.quantized import dequantize, is_quantized
from omnivinci_jax.models.qwen2 import Qwen2Layer
from omnivinci_jax.models.siglip import SiglipLayer
from omnivinci_jax.quantize.calibration import Inputs, observe
from omnivinci_jax.quantize.folding import fold, folds
from omnivinci_jax.quantize.model import quantize_layer
from tests.tiny import random_params, tiny_config

CONFIG = tiny_config()
RANDOM = np.random.default_rng(0)
EQUAL_HEADS = dataclasses.replace(CONFIG.text, num_key_value_heads=4)


def first_layer(params: dict, stack: str) -> dict:
    part, layers = stack.split("/")
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), params[part][layers])


def case(stack: str) -> tuple[nn.Module, dict, Inputs]:
    """Returns a layer, its parameters and tokens; three of its channels are 30 times as large as the others."""
    config = CONFIG if stack != "llm/layers" else CONFIG.replace(text=EQUAL_HEADS)
    params = first_layer(random_params(config), stack)
    width = {"vision_tower/layers": 64, "sound_tower/layers": 64, "llm/layers": 128}[stack]
    x = jnp.asarray(RANDOM.normal(size=(2, 24, width)), jnp.float32)
    used = jnp.ones((2, 24), bool)
    if stack == "vision_tower/layers":
        return SiglipLayer(config.vision), params, Inputs(x, (), used)
    if stack == "sound_tower/layers":
        return AFWhisperLayer(config.audio), params, Inputs(x, (), used)
    rope = rope_cos_sin(jnp.broadcast_to(jnp.arange(24), (2, 24)), 32, 1e6)
    return Qwen2Layer(config.text), params, Inputs(x, (rope, jnp.ones((2, 24), jnp.int32)), used)


def flat(params: dict) -> dict:
    return dict(traverse_util.flatten_dict(params, sep="/"))


def output(layer: nn.Module, params: dict, inputs: Inputs) -> jax.Array:
    apply = jax.jit(lambda params: layer.apply({"params": params}, inputs.x, *inputs.shared)[0])
    return apply(params)


def with_outliers(params: dict, stack: str) -> dict:
    """Makes three channels of every norm 30 times as large, without a change of the function."""
    for place in folds(stack, CONFIG):
        if place.after_norm:
            width = len(flat(params)[f"{place.source}/scale"])
            scales = np.ones(width, np.float32)
            scales[RANDOM.permutation(width)[:3]] = 1 / 30
            params = fold(params, place, scales)
    return params


STACKS = ("vision_tower/layers", "sound_tower/layers", "llm/layers")


@pytest.mark.parametrize("stack", STACKS)
def test_folding_leaves_the_function_unchanged(stack):
    layer, params, inputs = case(stack)
    places = folds(stack, CONFIG.replace(text=EQUAL_HEADS))
    assert len(places) == (4 if stack == "llm/layers" else 2)
    assert len(folds("llm/layers", CONFIG)) == 3  # v is no source under grouped heads
    changed = params
    for place in places:
        channels = len(flat(params)[f"{place.targets[0]}/kernel"])
        changed = fold(changed, place, np.exp(RANDOM.normal(size=channels)).astype(np.float32))
    expected = output(layer, params, inputs)
    np.testing.assert_allclose(output(layer, changed, inputs), expected, atol=2e-5 * np.abs(expected).max())
    assert all(not np.allclose(flat(changed)[f"{p.source}/{n}"], flat(params)[f"{p.source}/{n}"])
               for p in places for n in [("scale" if p.after_norm else "kernel")])  # fmt: skip


@pytest.mark.parametrize(
    ("stack", "scheme", "margin"), [(STACKS[0], "w8a8", 3), (STACKS[1], "w8a8", 3), (STACKS[2], "w4a16", 1.5)]
)
def test_calibration_beats_rounding_on_outliers(stack, scheme, margin):
    """AWQ and SmoothQuant have a fraction of the error of rounding on other tokens than those of calibration."""
    layer, params, inputs = case(stack)
    params = with_outliers(params, stack)
    schemes = dict.fromkeys((path for path in flat(params) if path.endswith("kernel")), scheme)
    _, seen = observe(layer, params, [inputs])
    fresh = inputs._replace(x=jnp.asarray(RANDOM.normal(size=inputs.x.shape), jnp.float32))
    expected = output(layer, params, fresh) - fresh.x

    def error(seen) -> float:
        changed = flat(params) | quantize_layer(flat(params), schemes, 64, seen, folds(stack, CONFIG))
        changed = jax.tree.map(jnp.asarray, changed)
        actual = output(layer, traverse_util.unflatten_dict(changed, sep="/"), fresh) - fresh.x
        return float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected))

    naive, calibrated = error(None), error(seen)
    print(f"{stack} {scheme}: rounding {naive:.4f}, calibrated {calibrated:.4f}")
    assert calibrated * margin < naive


def test_statistics_are_those_of_the_input():
    layer, params, inputs = case("vision_tower/layers")
    used = inputs.used.at[1, 10:].set(False)
    _, seen = observe(layer, params, [inputs._replace(used=used)])
    norm = flat(params)
    x = np.asarray(inputs.x)[np.asarray(used)]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * norm["layer_norm1/scale"] + norm["layer_norm1/bias"]
    np.testing.assert_allclose(seen["self_attn/q_proj"].mean, np.abs(x).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(seen["self_attn/q_proj"].largest, np.abs(x).max(axis=0), rtol=1e-4)
    np.testing.assert_allclose(seen["self_attn/q_proj"].sample, x, atol=1e-4)


def test_quantized_layers_keep_what_is_not_quantized():
    _, params, _ = case("sound_tower/layers")
    changed = quantize_layer(flat(params), {"fc1/kernel": "w8a8"}, 64)
    assert list(changed) == ["fc1/kernel"] and is_quantized(changed["fc1/kernel"])
    kernel, weight = flat(params)["fc1/kernel"], jax.tree.map(jnp.asarray, changed["fc1/kernel"])
    assert np.abs(dequantize(weight) - kernel).max() <= np.abs(kernel).max() / 127 / 2 * 1.001
