"""States that start from a model directory: what they read, in which types, and that a checkpoint brings them back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.mesh.mesh import make_mesh, on_mesh
from omnivinci_jax.model_dir import save
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.settings import LoraConfig
from omnivinci_jax.train.checkpoints import Checkpoints
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.start import find_start
from omnivinci_jax.train.state import abstract_state, create_frozen, create_state, make_model
from tests.tiny import tiny_settings, tiny_tokenizer


@pytest.mark.parametrize("rank", [0, 2])
def test_a_checkpoint_and_the_start_make_the_state_again(rank, tmp_path):
    config = dataclasses.replace(
        tiny_settings(), dtype="bfloat16", start_from=str(tmp_path / "base"), lora=LoraConfig(rank=rank)
    )
    mesh, model = make_mesh(config.mesh), make_model(config, "cpu")
    random = np.random.default_rng(0)
    base = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.bfloat16), abstract_params(model.config)
    )
    save(tmp_path / "base", config.model, base, tiny_tokenizer())
    with on_mesh(mesh):
        optimizer, start = make_optimizer(config.optimizer, config.steps, config.model), find_start(config, model)
        shapes, shardings = abstract_state(model, optimizer, config, mesh)
        state = create_state(model, optimizer, config, shardings, start)
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(7, state, {"step": 7})
        checkpoints.wait()
        frozen = create_frozen(model, optimizer, config, shardings, start)
        again, run = checkpoints.restore(shapes, shardings, frozen)
    assert run == {"step": 7}
    jax.tree.map(np.testing.assert_array_equal, again, state)

    held, free, given = (traverse_util.flatten_dict(tree, sep="/") for tree in (state.frozen, state.trainable, base))
    assert {str(leaf.dtype) for leaf in free.values()} == {"float32"}
    found = held | free
    for path, leaf in given.items():
        np.testing.assert_array_equal(found[path].astype(jnp.bfloat16), leaf, err_msg=path)
    added = {path.rpartition("/")[2] for path in found.keys() - given.keys()}
    assert added == ({"lora_a", "lora_b", "lora_scale"} if rank else set())


def test_named_modules_are_taken_and_the_rest_is_new(tmp_path):
    config = dataclasses.replace(tiny_settings(), start_from=str(tmp_path / "base"), start_modules=("llm",))
    mesh, base = make_mesh(config.mesh), make_model(config, "cpu")
    given = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), abstract_params(base.config))
    save(tmp_path / "base", config.model, given, tiny_tokenizer())
    other = dataclasses.replace(config.model, audio_compression="conv")  # whose projector the given model lacks
    config = dataclasses.replace(config, model=other)
    model, optimizer = make_model(config, "cpu"), make_optimizer(config.optimizer, config.steps, config.model)
    with on_mesh(mesh):
        _, shardings = abstract_state(model, optimizer, config, mesh)
        taken = create_state(model, optimizer, config, shardings, find_start(config, model)).params
        drawn = create_state(model, optimizer, config, shardings).params
    jax.tree.map(np.testing.assert_array_equal, taken, drawn | {"llm": given["llm"]})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"start_modules": ("lm",)}, "'lm': no such module"),
        ({"start_modules": ("llm",), "lora": LoraConfig(rank=2)}, "a whole model to adapt"),
        ({"start_from": "", "start_modules": ("llm",)}, "no config.start_from"),
    ],
)
def test_modules_that_cannot_be_taken_are_refused(changes, message, tmp_path):
    config = dataclasses.replace(tiny_settings(), start_from=str(tmp_path / "base"))
    model = make_model(config, "cpu")
    save(tmp_path / "base", config.model, jax.tree.map(jnp.zeros_like, abstract_params(model.config)), tiny_tokenizer())
    with pytest.raises(ConfigError, match=message):
        find_start(dataclasses.replace(config, **changes), model)
