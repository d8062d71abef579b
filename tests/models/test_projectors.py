import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from omnivinci_jax.config import (
    AUDIO_COMPRESSIONS,
    AFWhisperConfig,
    OmniAlignConfig,
    OmniVinciConfig,
    Qwen2Config,
    TimeEmbeddingConfig,
)
from omnivinci_jax.models.projectors import SoundProjector, space_to_depth


def config(compression, positions=20):
    return OmniVinciConfig(
        text=Qwen2Config(64, 6, 8, 1, 1, 1),
        audio=AFWhisperConfig(4, 8, 1, 1, 8, positions),
        audio_compression=compression,
        video_time=TimeEmbeddingConfig("none"),
        sound_time=TimeEmbeddingConfig("none"),
        omni_align=OmniAlignConfig(num_heads=1),
    )


def test_space_to_depth_orders_row_column_channel():
    x = np.arange(2 * 3 * 2).reshape(1, 2, 3, 2)
    out = np.asarray(space_to_depth(jnp.asarray(x, jnp.float32)))
    np.testing.assert_array_equal(out[0, 0, 0], [0, 1, 2, 3, 6, 7, 8, 9])
    np.testing.assert_array_equal(out[0, 0, 1], [4, 5, 0, 0, 10, 11, 0, 0])


@pytest.mark.parametrize("positions", [20, 22])  # 10 and 11 features per window
@pytest.mark.parametrize("compression", AUDIO_COMPRESSIONS)
def test_number_of_tokens_matches_the_configuration(compression, positions):
    projector = SoundProjector(config(compression, positions))
    out = jax.eval_shape(projector.init_with_output, jax.random.key(0), jnp.zeros((3, positions // 2, 4)))[0]
    assert out.shape == (3, config(compression, positions).window_tokens, 6)


@pytest.mark.parametrize("compression,expected", [("none", [1, 5, 2, -3]), ("average", [3, -0.5]), ("max", [5, 2])])
def test_poolings(compression, expected):
    """Pools one channel; the MLP is the identity, because its GELU gets large values."""
    x = jnp.asarray([1.0, 5, 2, -3])[None, :, None]
    params = {
        "fc1": {"kernel": jnp.ones((1, 6)), "bias": jnp.full(6, 50.0)},
        "fc2": {"kernel": jnp.eye(6), "bias": jnp.full(6, -50.0)},
    }
    out = SoundProjector(config(compression)).apply({"params": params}, x)
    np.testing.assert_allclose(out[0, :, 0], expected, atol=1e-5)


def test_convolution_steps_by_two_with_padding():
    x = jnp.asarray([1.0, 2, 3, 4, 5])[None, :, None]
    params = nn.unbox(SoundProjector(config("conv")).init(jax.random.key(0), x)["params"])
    params["conv"] = {"kernel": jnp.asarray([100.0, 10.0, 1.0])[:, None, None], "bias": jnp.zeros(1)}
    params["fc1"] = {"kernel": jnp.ones((1, 6)), "bias": jnp.zeros(6)}
    params["fc2"] = {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}
    out = SoundProjector(config("conv")).apply({"params": params}, x)
    np.testing.assert_allclose(out[0, :, 0], [12, 234, 450], rtol=1e-6)


def test_the_gradient_of_max_pooling_divides_by_nothing():
    """That of a max over an axis divides by the number of maxima, which rounding can make 0."""
    module = SoundProjector(config("max"))
    x = jnp.ones((1, 4, 8))
    params = module.init(jax.random.key(0), x)
    program = str(jax.make_jaxpr(jax.grad(lambda x: module.apply(params, x).sum()))(x))
    assert " max " in program and "reduce_max" not in program
