"""States that start from a model directory: what they load, in which types, and how a checkpoint restores them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
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
def test_a_checkpoint_and_the_start_model_restore_the_state(rank, tmp_path):
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
        checkpoints = Checkpoints(epath.Path(tmp_path) / "checkpoints")
        checkpoints.save(7, state, {"step": 7})
        checkpoints.wait()
        frozen = create_frozen(model, optimizer, config, shardings, start)
        again, run = checkpoints.restore(shapes, shardings, frozen)
    assert run == {"step": 7}
    jax.tree.map(np.testing.assert_array_equal, again, state)

    frozen, trainable, given = (
        traverse_util.flatten_dict(tree, sep="/") for tree in (state.frozen, state.trainable, base)
    )
    assert {str(leaf.dtype) for leaf in trainable.values()} == {"float32"}
    found = frozen | trainable
    for path, leaf in given.items():
        np.testing.assert_array_equal(found[path].astype(jnp.bfloat16), leaf, err_msg=path)
    added = {path.rpartition("/")[2] for path in found.keys() - given.keys()}
    assert added == ({"lora_a", "lora_b", "lora_scale"} if rank else set())


def test_start_modules_are_loaded_and_the_rest_is_random(tmp_path):
    config = dataclasses.replace(tiny_settings(), start_from=str(tmp_path / "base"), start_modules=("llm",))
    mesh, base = make_mesh(config.mesh), make_model(config, "cpu")
    given = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), abstract_params(base.config))
    save(tmp_path / "base", config.model, given, tiny_tokenizer())
    other = dataclasses.replace(config.model, audio_compression="conv")  # the saved model lacks its projector
    config = dataclasses.replace(config, model=other)
    model, optimizer = make_model(config, "cpu"), make_optimizer(config.optimizer, config.steps, config.model)
    with on_mesh(mesh):
        _, shardings = abstract_state(model, optimizer, config, mesh)
        loaded = create_state(model, optimizer, config, shardings, find_start(config, model)).params
        drawn = create_state(model, optimizer, config, shardings).params
    jax.tree.map(np.testing.assert_array_equal, loaded, drawn | {"llm": given["llm"]})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"start_modules": ("lm",)}, "'lm': no such module"),
        ({"start_modules": ("llm",), "lora": LoraConfig(rank=2)}, "a whole model to adapt"),
        ({"start_from": "", "start_modules": ("llm",)}, "needs config.start_from"),
    ],
)
def test_invalid_start_modules_are_errors(changes, message, tmp_path):
    config = dataclasses.replace(tiny_settings(), start_from=str(tmp_path / "base"))
    model = make_model(config, "cpu")
    save(tmp_path / "base", config.model, jax.tree.map(jnp.zeros_like, abstract_params(model.config)), tiny_tokenizer())
    with pytest.raises(ConfigError, match=message):
        find_start(dataclasses.replace(config, **changes), model)
