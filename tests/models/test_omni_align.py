import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from omnivinci_jax.config import OmniAlignConfig
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.omni_align import ClipQuery, OmniAlignNet

CONFIG = OmniAlignConfig(num_layers=3, num_heads=2)
CLIPS = jnp.array([[1, 1, 0, 2, 2, 2, 1], [0, 3, 3, 1, 0, 0, 0]])
TOKENS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 8)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    params = nn.unbox(ClipQuery(CONFIG).init(jax.random.key(0), TOKENS, CLIPS, 3))["params"]
    params["query"] = jax.random.normal(jax.random.key(1), (1, 8))
    return params


def test_all_clips_at_once_match_one_at_a_time(params):
    together = jax.jit(ClipQuery(CONFIG).apply, static_argnums=3)({"params": params}, TOKENS, CLIPS, 3)
    assert together.shape == (2, 3, 8)
    for group, clip in ((0, 1), (0, 2), (1, 1), (1, 3)):
        tokens = TOKENS[group][CLIPS[group] == clip][None]
        alone = jax.jit(ClipQuery(CONFIG).apply, static_argnums=3)(
            {"params": params}, tokens, jnp.ones(tokens.shape[:2], int), 1
        )
        np.testing.assert_allclose(together[group, clip - 1], alone[0, 0], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, rtol=1e-6)


def test_a_clip_without_tokens_is_the_query_alone(params):
    out = jax.jit(ClipQuery(CONFIG).apply, static_argnums=3)({"params": params}, TOKENS, CLIPS, 3)
    np.testing.assert_allclose(out[0, 2], out[1, 1], atol=1e-6)  # neither group has tokens of that clip
    assert not np.allclose(out[0, 2], out[0, 0], atol=1e-2)


def test_gradients_reach_query_and_key_weights(params):
    def loss(params):
        return (
            jax.jit(ClipQuery(CONFIG).apply, static_argnums=3)({"params": params}, TOKENS, CLIPS, 3)[0, 0] ** 3
        ).sum()

    gradients = jax.jit(jax.grad(loss))(params)
    attention = gradients["layers"]["self_attn"]
    assert np.abs(gradients["query"]).max() > 1e-3
    for layer in range(3):
        assert np.abs(attention["q_proj"]["kernel"][layer]).max() > 1e-5
        assert np.abs(attention["k_proj"]["kernel"][layer]).max() > 1e-5


def test_bfloat16_vectors_are_unit_in_float32(params):
    out = jax.jit(ClipQuery(CONFIG, Compute(jnp.bfloat16)).apply, static_argnums=3)(
        {"params": params}, jnp.asarray(TOKENS, jnp.bfloat16), CLIPS, 3
    )
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("learned,expected", [(False, 1.0), (True, 1 / 0.07)])
def test_scale(learned, expected):
    module = OmniAlignNet(OmniAlignConfig(num_heads=2, learned_scale=learned))
    (vision, audio, scale), variables = module.init_with_output(
        jax.random.key(0), TOKENS, CLIPS, TOKENS[:, :4], CLIPS[:, :4], 3
    )
    assert vision.shape == audio.shape == (2, 3, 8)
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    assert ("log_scale" in variables["params"]) == learned
