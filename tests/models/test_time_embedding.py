import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from omnivinci_jax.config import TIME_SCHEMES, TimeEmbeddingConfig
from omnivinci_jax.models.time_embedding import TimeEmbedding, frequencies, rotate, time_angles
from omnivinci_jax.sequence.axial import axial_angles
from omnivinci_jax.sequence.harmonic import harmonic_angles

ROTARY = [
    TimeEmbeddingConfig("crte", 60.0, 128),
    TimeEmbeddingConfig("crte", 3600.0, 128),
    TimeEmbeddingConfig("longest", 60.0, 128),
    TimeEmbeddingConfig("rote", None, 128),
]


def embed(config, x, times, angles=None, key=0):
    x, times = jnp.asarray(x), jnp.asarray(times)
    module = TimeEmbedding(config)
    return module.apply(module.init(jax.random.key(key), x, times, angles), x, times, angles)


@pytest.mark.parametrize("config", ROTARY, ids=lambda config: f"{config.scheme}-{config.max_time}")
@settings(deadline=None)
@given(times=st.lists(st.floats(0, 4096, width=32), min_size=20, max_size=20))
def test_angles_match_float64(config, times):
    times = np.array(times, np.float32)
    angles = np.asarray(time_angles(jnp.asarray(times), frequencies(config)), np.float64)
    exact = 2 * np.pi * times[:, None].astype(np.float64) * frequencies(config)
    assert np.abs(np.exp(1j * angles) - np.exp(1j * exact)).max() < 2e-6


def test_crte_is_equation_4():
    config = TimeEmbeddingConfig("crte", 3600.0, 32, theta=5.0)
    expected = [2 * np.pi / (3600 * 5 ** (i / 16)) for i in range(16)]
    np.testing.assert_allclose(2 * np.pi * frequencies(config), expected, rtol=1e-12)


def test_pair_angles_are_the_first_of_each_plane():
    one, pair = (TimeEmbeddingConfig("crte", 60.0, 32, pair_angles=pair) for pair in (False, True))
    np.testing.assert_array_equal(frequencies(pair), np.repeat(frequencies(one)[::2], 2))
    x = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
    out = embed(pair, x, np.arange(5, dtype=np.float32))
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)


def test_rote_turns_each_plane_without_a_horizon():
    turns = frequencies(TimeEmbeddingConfig("rote", None, 16))
    np.testing.assert_allclose(2 * np.pi * turns, np.repeat([1, 0.1, 0.01, 0.001], 2), rtol=1e-12)


@pytest.mark.parametrize("scheme", TIME_SCHEMES)
def test_time_zero_changes_nothing(scheme):
    config = TimeEmbeddingConfig(scheme, 60.0, 8)
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    seconds = np.array([0, 7.5, 0, 2.0])
    x, times = jnp.asarray(x), jnp.asarray(seconds, jnp.float32)
    angles = None
    if config.axial:
        angles = jnp.asarray(axial_angles(np.zeros(4, int), np.arange(4), 1, 4, seconds, config, "video"))
    elif config.harmonic:
        angles = jnp.asarray(harmonic_angles(seconds, config))
    module = TimeEmbedding(config)
    variables = nn.unbox(module.init(jax.random.key(0), x, times, angles))
    if scheme == "learned":
        np.testing.assert_array_equal(module.apply(variables, x, times), x)  # it starts by adding nothing
        variables["params"]["fc2"]["kernel"] += 1
    out = np.asarray(module.apply(variables, x, times, angles))
    np.testing.assert_array_equal(out[::2], x[::2])
    # Under `harmonic_longest`, 7.5 s is the clip's t0: all bands make whole turns.
    moved = 3 if scheme == "harmonic_longest" else 1
    assert np.array_equal(out[moved], x[moved]) == (scheme == "none")


def test_learned_time_has_a_row_per_second():
    config = TimeEmbeddingConfig("learned", 10.0, 8)
    x, times = jnp.zeros((5, 6)), jnp.array([2.4, 1.6, 3.0, 10.0, 99.0])
    module = TimeEmbedding(config)
    params = nn.unbox(module.init(jax.random.key(0), x, times))["params"]
    params["fc2"]["kernel"] = jnp.eye(6)
    out = np.asarray(module.apply({"params": params}, x, times))
    assert params["seconds"]["embedding"].shape == (11, 6)
    np.testing.assert_array_equal(out[0], out[1])  # both second 2
    np.testing.assert_array_equal(out[3], out[4])  # clipped
    assert not np.allclose(out[0], out[2])


def test_learned_time_learns():
    config, x, times = TimeEmbeddingConfig("learned", 10.0, 8), jnp.ones((2, 6)), jnp.ones(2)
    module = TimeEmbedding(config)
    params = nn.unbox(module.init(jax.random.key(0), x, times))
    gradients = jax.grad(lambda params: (module.apply(params, x, times) ** 3).sum())(params)["params"]
    assert np.any(gradients["fc2"]["kernel"] != 0)  # the zero layer learns first, then the layers before it


def test_only_the_first_channels_turn():
    x = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    out = embed(TimeEmbeddingConfig("crte", 60.0, 16), x, np.full(4, 30, np.float32))
    np.testing.assert_array_equal(out[:, 8:], x[:, 8:])
    assert np.all(out[:, :8] != x[:, :8])


def test_bfloat16_tokens_turn_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.bfloat16)
    angles = jnp.asarray(np.random.default_rng(1).uniform(0, 6, (4, 8)), jnp.float32)
    out = rotate(x, angles)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, rotate(x.astype(jnp.float32), angles).astype(jnp.bfloat16))


def test_axial_angles_are_within_one_turn_and_repeat_per_plane():
    config = TimeEmbeddingConfig("axial_reversed", None, 128)
    rng = np.random.default_rng(0)
    angles = axial_angles(
        rng.integers(0, 9, 50), rng.integers(0, 16, 50), 9, 16, rng.uniform(0, 3600, 50), config, "video"
    )
    assert angles.shape == (50, 256) and angles.dtype == np.float32
    assert angles.min() >= 0 and angles.max() <= np.float32(2 * np.pi)
    np.testing.assert_array_equal(angles[:, ::2], angles[:, 1::2])
