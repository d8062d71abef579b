"""The training step with a loss or a gradient that is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from omnivinci_jax.mesh.mesh import make_mesh, on_mesh
from omnivinci_jax.mesh.rules import replicated
from omnivinci_jax.settings import MeshConfig
from omnivinci_jax.train.state import TrainState
from omnivinci_jax.train.step import make_train_step

OPTIMIZER = optax.adamw(0.1)


def loss(params: dict, weight: jax.Array) -> tuple[jax.Array, dict]:
    return jnp.sum(weight * params["kernel"] ** 2) + jnp.sqrt(params["bias"]), {}


@pytest.mark.parametrize(
    ("weight", "bias", "is_finite"),
    [(1.0, 4.0, True), (np.nan, 4.0, False), (np.inf, 4.0, False), (1.0, 0.0, False)],  # the last has only its gradient
)
def test_a_nonfinite_update_is_skipped(weight, bias, is_finite):
    mesh = make_mesh(MeshConfig())
    trainable = {"kernel": jnp.arange(1.0, 4.0), "bias": jnp.array(bias)}
    state = TrainState(jnp.zeros((), jnp.int32), trainable, {}, OPTIMIZER.init(trainable))
    before = jax.device_get((state.trainable, state.opt_state))
    with on_mesh(mesh):
        train_step = make_train_step(loss, OPTIMIZER, jax.tree.map(lambda _: replicated(mesh), state))
        state, metrics = train_step(state, jnp.full((2, 1), weight))
    same = jax.tree.map(np.array_equal, before, jax.device_get((state.trainable, state.opt_state)))
    assert bool(metrics["finite"]) == is_finite
    assert all(jax.tree.leaves(same)) == (not is_finite)
    assert int(state.step) == 1
