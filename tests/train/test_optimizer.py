import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.settings import OptimizerConfig
from omnivinci_jax.train.optimizer import learning_rate, make_optimizer, muon_dimensions
from omnivinci_jax.train.state import merge, split
from tests.tiny import tiny_config, tiny_settings


@pytest.fixture(scope="module")
def shapes() -> dict:
    return abstract_params(tiny_config())


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine():
    rate = learning_rate(OptimizerConfig(learning_rate=2e-5, warmup=0.03), 1000)
    assert rate(0) == 0 and rate(15) == pytest.approx(1e-5) and rate(30) == pytest.approx(2e-5)
    for step in (200, 515, 900):
        expected = 2e-5 * (1 + np.cos(np.pi * (step - 30) / 970)) / 2
        assert rate(step) == pytest.approx(expected, rel=1e-4)
    assert rate(1000) == pytest.approx(0, abs=1e-12)


def test_muon_updates_only_hidden_kernels(shapes):
    chosen = traverse_util.flatten_dict(muon_dimensions(tiny_config(), shapes), sep="/")
    with_muon = {path for path, dimensions in chosen.items() if dimensions is not None}
    assert "llm/layers/mlp/up_proj/kernel" in with_muon and "mm_projector/fc1/kernel" in with_muon
    assert all(path.endswith("kernel") for path in with_muon) and "llm/lm_head/kernel" not in with_muon


def test_muon_treats_stacked_layers_separately():
    """The update of a stack of kernels is the stack of their updates."""
    kernels = np.random.default_rng(0).normal(size=(3, 8, 4)).astype(np.float32)
    gradients = np.random.default_rng(1).normal(size=(3, 8, 4)).astype(np.float32)
    optimizer = make_optimizer(OptimizerConfig(name="muon", learning_rate=0.1, clip_norm=1e9), 10, tiny_config())

    def tree(kernel):
        return {"llm": {"layers": {"mlp": {"up_proj": {"kernel": jnp.array(kernel)}}}}}

    def update(kernel, gradient):
        params = tree(kernel)
        state = optimizer.init(params)
        for _ in range(2):  # the rate of the first step is 0
            updates, state = optimizer.update(tree(gradient), state, params)
        return jax.tree.leaves(updates)[0]

    stacked = update(kernels, gradients)
    assert jnp.abs(stacked).max() > 0
    for layer in range(3):
        np.testing.assert_allclose(stacked[layer], update(kernels[layer], gradients[layer]), rtol=1e-4, atol=1e-6)


def test_merge_inverts_split_and_the_patterns_select_frozen_parameters(shapes):
    trainable, frozen = split(shapes, tiny_settings().frozen)
    assert jax.tree.structure(merge(trainable, frozen)) == jax.tree.structure(shapes)
    paths = traverse_util.flatten_dict(frozen, sep="/")
    assert paths and all(
        path.startswith(("vision_tower/last_layer", "vision_tower/post_layernorm", "sound_tower/embed_positions"))
        for path in paths
    )


@pytest.mark.parametrize("patterns, message", [(("nothing/.*",), "matches no parameter"), ((".*",), "nothing is left")])
def test_patterns_that_match_nothing_or_everything_are_errors(shapes, patterns, message):
    with pytest.raises(ConfigError, match=message):
        split(shapes, patterns)
