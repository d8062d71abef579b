"""Adapters: their shapes, no effect when new, and the same logits after merging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.models.lora import add_adapters, merge_adapters, without_adapters
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.weights import AdaptedWeight, matmul
from omnivinci_jax.sequence.batch import Batch
from tests.models.inputs import random_batch
from tests.tiny import random_boxes, tiny_config

MODEL, RANK, ALPHA = OmniVinci(tiny_config()), 3, 12.0
RANDOM = np.random.default_rng(0)


def adapted(*targets: str) -> dict:
    """Initialises parameters with adapters."""
    return nn.meta.unbox(add_adapters(random_boxes(MODEL.config), RANK, ALPHA, targets, jax.random.key(0)))


@jax.jit
def logits(params: dict, batch: Batch) -> jax.Array:
    hidden = MODEL.apply({"params": params}, batch).hidden
    return MODEL.apply({"params": params}, hidden, method=MODEL.logits)[..., : MODEL.config.text.vocab_size]


def test_live_and_merged_adapters_of_every_part_give_the_same_logits():
    params, inputs = adapted(".*"), random_batch(MODEL.config)
    base = without_adapters(params)
    flat = traverse_util.flatten_dict(params)
    for path, leaf in flat.items():
        if path[-1] == "lora_b":
            flat[path] = RANDOM.normal(size=leaf.shape).astype(np.float32) * 0.05
    low_rank = {path: leaf for path, leaf in flat.items() if path[-1] in ("lora_a", "lora_b")}
    live = logits(traverse_util.unflatten_dict(flat), inputs)
    merged = merge_adapters(base, traverse_util.unflatten_dict(low_rank), ALPHA / RANK)
    assert np.abs(live - logits(base, inputs)).max() > 0.1
    np.testing.assert_allclose(logits(merged, inputs), live, atol=2e-5 * np.abs(live).max())
    for part in ("llm/lm_head", "mm_projector/fc1", "sound_tower/layers/fc2", "vision_tower/patch_embedding"):
        assert (*part.split("/"), "lora_a") in flat


def test_a_new_adapter_adds_nothing():
    kernel, a = (jnp.asarray(RANDOM.normal(size=shape), jnp.float32) for shape in ((8, 6), (8, RANK)))
    adapted_kernel = AdaptedWeight(kernel, a, jnp.zeros((RANK, 6)), jnp.asarray(ALPHA / RANK))
    x = jnp.asarray(RANDOM.normal(size=(5, 8)), jnp.float32)
    products = [matmul(x, weight, (None, None), jnp.float32) for weight in (adapted_kernel, kernel)]
    np.testing.assert_array_equal(*products)


def test_a_stack_of_layers_has_an_adapter_for_each():
    flat = traverse_util.flatten_dict(adapted("llm/layers/.*/k_proj/kernel"), sep="/")
    found = {path: leaf.shape for path, leaf in flat.items() if "lora" in path}
    module = "llm/layers/self_attn/k_proj"
    assert found == {f"{module}/lora_a": (3, 128, 3), f"{module}/lora_b": (3, 3, 64), f"{module}/lora_scale": (3,)}
    layers = np.asarray(flat[f"{module}/lora_a"])
    assert not np.array_equal(layers[0], layers[1]) and np.abs(layers).max() <= 128**-0.5
    assert not np.any(flat[f"{module}/lora_b"]) and np.all(flat[f"{module}/lora_scale"] == ALPHA / RANK)


@pytest.mark.parametrize("target", ["llm/layer/.*", "llm/norm/scale", "sound_tower/conv1/kernel"])
def test_a_target_that_is_no_dense_kernel_is_an_error(target):
    with pytest.raises(ConfigError, match=r"config\.lora\.targets: '.*' matches no dense kernel; paths look like llm/"):
        adapted("llm/layers/.*", target)
