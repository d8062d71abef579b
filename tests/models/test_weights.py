"""Another type of weight in place of kernels and embeddings: a toy quantized array."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import struct, traverse_util

from omnivinci_jax.models.initialization import parameter_roles
from omnivinci_jax.models.layers import Dense
from omnivinci_jax.models.lora import add_adapters
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.weights import Weight, cast
from tests.models.inputs import random_batch
from tests.tiny import random_boxes, tiny_config

CONFIG = tiny_config(text=dataclasses.replace(tiny_config().text, tie_word_embeddings=True))
MODEL = OmniVinci(CONFIG)


@struct.dataclass
class Int8Weight(Weight):
    """int8 values and a float32 scale for each row; no leaf has the shape of the kernel."""

    blocks: jax.Array  # int8 [..., in, 1, out]
    scales: jax.Array  # float32 [..., in]

    @classmethod
    def quantize(cls, kernel: jax.Array) -> "Int8Weight":
        scales = jnp.maximum(jnp.abs(kernel).max(axis=-1), 1e-9) / 127
        return cls(jnp.round(kernel / scales[..., None]).astype(jnp.int8)[..., None, :], scales)

    def dequantize(self) -> jax.Array:
        return self.blocks[..., 0, :] * self.scales[..., None]

    @property
    def shape(self):
        return self.blocks.shape[0], self.blocks.shape[2]

    @property
    def T(self):
        return _Transposed(self)

    def matmul(self, x, axes, out_dtype):
        return jnp.dot(x * self.scales.astype(x.dtype), self.blocks[:, 0].astype(x.dtype)).astype(out_dtype)

    def take_rows(self, ids, axes, dtype):
        return (self.blocks[ids, 0] * self.scales[ids, None]).astype(dtype)


@struct.dataclass
class _Transposed(Weight):
    weight: Int8Weight

    @property
    def shape(self):
        return self.weight.shape[::-1]

    def matmul(self, x, axes, out_dtype):
        product = jnp.dot(x, self.weight.blocks[:, 0].T.astype(x.dtype))
        return (product * self.weight.scales.astype(x.dtype)).astype(out_dtype)


@jax.jit
def outputs(params: dict, batch) -> tuple:
    hidden, clips = MODEL.apply({"params": params}, batch)
    return MODEL.apply({"params": params}, hidden, method=MODEL.logits)[..., : CONFIG.text.vocab_size], clips


def test_quantized_weights_match_their_values():
    """Every dense kernel and the tied embedding, in stacks and alone, with adapters beside them."""

    params = nn.meta.unbox(add_adapters(random_boxes(CONFIG), 2, 4.0, (".*",), jax.random.key(0)))
    flat, random = traverse_util.flatten_dict(params, sep="/"), np.random.default_rng(0)
    roles = traverse_util.flatten_dict(parameter_roles(CONFIG, params), sep="/")
    for path, leaf in flat.items():
        if path.endswith("lora_b"):
            flat[path] = random.normal(size=leaf.shape).astype(np.float32) * 0.05
        elif roles[path].adaptable or path == "llm/embed_tokens/embedding":
            flat[path] = Int8Weight.quantize(leaf)
    quantized = traverse_util.unflatten_dict(flat, sep="/")
    values = {path: leaf.dequantize() if isinstance(leaf, Weight) else leaf for path, leaf in flat.items()}
    values = traverse_util.unflatten_dict(values, sep="/")
    batch = random_batch(CONFIG)
    actual, expected = outputs(quantized, batch), outputs(values, batch)
    assert np.abs(expected[0] - outputs(params, batch)[0]).max() > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max()), actual, expected)
    # A quantized weight has the role of the array that it replaces.
    assert traverse_util.flatten_dict(parameter_roles(CONFIG, quantized), sep="/") == roles


def test_a_weight_of_another_shape_is_an_error():
    params = {"kernel": Int8Weight.quantize(jnp.ones((4, 3))), "bias": jnp.zeros(3)}
    dense = Dense(3, ("embed", "mlp"))
    np.testing.assert_allclose(dense.apply({"params": params}, jnp.ones((2, 4))), np.full((2, 3), 4), rtol=1e-6)
    with pytest.raises(ValueError, match=r"kernel is \(4, 3\): expected \(5, 3\)"):
        dense.apply({"params": params}, jnp.ones((2, 5)))


def test_a_cast_leaves_weights_alone():
    weight = Int8Weight.quantize(jnp.ones((4, 3)))
    assert cast(weight, jnp.bfloat16) is weight
    assert cast(jnp.ones(3), jnp.bfloat16).dtype == jnp.bfloat16
