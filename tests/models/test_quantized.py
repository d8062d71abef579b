"""Quantized arrays: their values, their products, and the compiled decode step."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import traverse_util

from omnivinci_jax import model_dir
from omnivinci_jax.config_json import quantization_of, read_json
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.generate.decode_state import new_state
from omnivinci_jax.generate.programs import decode
from omnivinci_jax.generate.weights import decoding_weights
from omnivinci_jax.mesh.mesh import make_mesh
from omnivinci_jax.models.initialization import parameter_roles
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.quantized import QuantizedArray, dequantize, quantize
from omnivinci_jax.models.weights import matmul
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.state import abstract_state, create_state, make_model
from tests.tiny import random_params, tiny_config, tiny_settings, tiny_tokenizer

RANDOM = np.random.default_rng(0)
AXES = ("embed", "mlp")


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def quantized(params: dict, scheme: str) -> dict:
    """Quantizes every kernel of the layers of the towers and the decoder."""

    def replace(path: tuple, leaf: jax.Array, role) -> jax.Array | QuantizedArray:
        return quantize(leaf, scheme, 64) if role.adaptable and "layers" in path else leaf

    roles = traverse_util.flatten_dict(parameter_roles(tiny_config(), params))
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: replace(path, leaf, roles[path]) for path, leaf in flat.items()})


def test_int4_values_are_packed_low_half_first():
    kernel = jnp.asarray([[7.5, -7.5], [1.0, 2.0], [-3.2, 0.0], [0.4, -5.0]])  # [in, out], one group of four
    weight = quantize(kernel, "w4a16", 4)
    np.testing.assert_array_equal(weight.scales, [[1.0], [1.0]])
    np.testing.assert_array_equal(weight.values, [[0xF | 9 << 4, 5 | 8 << 4], [0 | 10 << 4, 8 | 3 << 4]])
    np.testing.assert_array_equal(dequantize(weight), [[7, -8], [1, 2], [-3, 0], [0, -5]])
    assert weight.shape == (4, 2) and weight.scheme == "w4a16"


@pytest.mark.parametrize(("scheme", "largest"), [("w4a16", 7.5), ("w8a8", 127), ("fp8", 448)])
def test_values_are_the_nearest(scheme, largest):
    kernel = normal(3, 256, 96) * jnp.exp(normal(3, 1, 96))
    weight = quantize(kernel, scheme)
    groups = 2 if scheme == "w4a16" else 1
    assert weight.scheme == scheme and weight.shape == kernel.shape and weight.scales.shape == (3, 96, groups)
    grouped = np.abs(np.asarray(kernel)).reshape(3, groups, -1, 96).max(axis=2).swapaxes(1, 2)
    np.testing.assert_allclose(weight.scales, grouped / largest, rtol=1e-6)
    step = np.repeat(weight.scales, 256 // groups, axis=2).swapaxes(1, 2)
    error = np.abs(dequantize(weight) - kernel)
    # float8 has three bits after the leading one, and steps of 2**-9 near zero.
    bound = 0.5 * step if scheme != "fp8" else np.maximum(np.abs(kernel) / 16, step * 2**-10)
    assert (error <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize(("outputs", "tokens"), [(96, 1), (96, 3), (96, 40)])  # the first in lanes
@pytest.mark.parametrize("scheme", ["w4a16", "w8a8", "fp8"])
def test_products(scheme, outputs, tokens):
    x, weight = normal(tokens, 256), quantize(normal(256, outputs), scheme)
    rounded = np.asarray(x)
    if scheme != "w4a16":  # activations as well
        scales = np.abs(rounded).max(axis=1, keepdims=True) / (127 if scheme == "w8a8" else 448)
        rounded = rounded / scales
        rounded = np.round(rounded) if scheme == "w8a8" else rounded.astype(jnp.float8_e4m3fn).astype(np.float32)
        rounded = rounded * scales
    expected = rounded.astype(np.float64) @ np.asarray(dequantize(weight), np.float64)
    actual = jax.jit(lambda x: matmul(x, weight, AXES, jnp.float32))(x)
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())
    narrow = matmul(x.astype(jnp.bfloat16), weight, AXES, jnp.bfloat16)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(float), expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8", "fp8"])
def test_the_gradient_is_that_of_the_values(scheme):
    x, weight, cotangent = normal(2, 3, 128), quantize(normal(128, 96), scheme), normal(2, 3, 96)
    gradient = jax.grad(lambda x: (matmul(x, weight, AXES, jnp.float32) * cotangent).sum())(x)
    expected = cotangent @ dequantize(weight).T
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def test_quantized_arrays_are_saved_and_loaded(tmp_path):
    config, record = tiny_config(), {"name": "fp8"}
    weights = quantized(random_params(config), "fp8")
    model_dir.save(tmp_path / "model", config, weights, tiny_tokenizer(), quantization=record)
    assert quantization_of(read_json(tmp_path / "model" / "config.json")) == record
    _, loaded = model_dir.load_model(tmp_path / "model")
    assert loaded["llm"]["layers"]["mlp"]["up_proj"]["kernel"].scheme == "fp8"
    jax.tree.map(np.testing.assert_array_equal, loaded, weights)


def test_adapters_train_on_a_quantized_model(tmp_path):
    settings = tiny_settings()
    params = quantized(random_params(settings.model), "w8a8")
    model_dir.save(tmp_path / "model", settings.model, params, tiny_tokenizer())
    start = epath.Path(tmp_path / "model")
    lora = dataclasses.replace(settings.lora, rank=2, targets=("llm/layers/.*/q_proj/kernel",))
    mesh, adapted = make_mesh(settings.mesh), dataclasses.replace(settings, lora=lora, start_from=str(start))
    model, optimizer = make_model(adapted, "cpu"), make_optimizer(settings.optimizer, 1, settings.model)
    shapes, shardings = abstract_state(model, optimizer, adapted, mesh, start)
    state = create_state(model, optimizer, adapted, shardings, start)
    assert jax.tree.map(lambda leaf: leaf.shape, state) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    q_proj = state.params["llm"]["layers"]["self_attn"]["q_proj"]
    assert q_proj["kernel"].scheme == "w8a8" and q_proj["lora_a"].shape == (3, 128, 2)
    np.testing.assert_array_equal(
        q_proj["kernel"].values, params["llm"]["layers"]["self_attn"]["q_proj"]["kernel"].values
    )
    with pytest.raises(
        ConfigError, match=r"kernel is quantized and cannot train: train adapters \(config\.lora\.rank\)"
    ):
        abstract_state(model, optimizer, dataclasses.replace(settings, start_from=str(start)), mesh, start)


def test_the_decode_program_has_no_float_copy_of_the_weights():
    config = tiny_config()
    model, params = OmniVinci(config), random_params(config)
    shape = config.text.hidden_size, config.text.intermediate_size

    def compiled(params: dict) -> jax.stages.Compiled:
        weights, state = decoding_weights(model, params), new_state(config.text, 1, 64, jnp.float32)
        return decode.lower(model, weights, state, np.int32(4), np.int32(0)).compile()

    def float_kernels(program: jax.stages.Compiled) -> set[tuple[int, ...]]:
        """Returns the shapes of the MLP's kernels that the program has in float or wide integers."""
        found = re.findall(r"\b(?:f32|bf16|s32)\[(\d+),(\d+)\]", program.as_text())
        return {tuple(map(int, sizes)) for sizes in found} & {shape, shape[::-1]}

    def temporary_bytes(program: jax.stages.Compiled) -> int:
        memory = program.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    plain = compiled(params)
    assert float_kernels(plain)  # the pattern finds them
    for scheme in ("w4a16", "w8a8"):
        program = compiled(quantized(params, scheme))
        assert not float_kernels(program), scheme
        # Nor does it convert slices of all kernels before the loop over steps.
        assert temporary_bytes(program) - temporary_bytes(plain) < 3 * 4 * math.prod(shape), scheme
