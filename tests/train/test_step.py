"""The training step with a loss that is not finite."""

import jax
import numpy as np
import pytest

from omnivinci_jax.mesh.mesh import make_mesh, on_mesh
from omnivinci_jax.mesh.rules import put_batch
from omnivinci_jax.models.initialization import init_batch
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.train.optimizer import make_optimizer
from omnivinci_jax.train.state import abstract_state, create_state
from omnivinci_jax.train.step import make_train_step
from omnivinci_jax.train.supervised_loss import SupervisedLoss
from tests.tiny import tiny_settings


@pytest.mark.parametrize(("weight", "changes"), [(1.0, True), (np.nan, False)])
def test_a_nonfinite_update_is_skipped(weight, changes):
    config = tiny_settings()
    mesh = make_mesh(config.mesh)
    with on_mesh(mesh):
        model, optimizer = OmniVinci(config.model), make_optimizer(config.optimizer, config.steps, config.model)
        _, shardings = abstract_state(model, optimizer, config, mesh)
        state = create_state(model, optimizer, config, shardings)
        before = jax.device_get((state.trainable, state.opt_state))
        batch = jax.tree.map(np.array, init_batch(config.model))
        batch.segment_ids[:] = 1
        batch.loss_weights[:] = weight
        train_step = make_train_step(SupervisedLoss(model, 0.0), optimizer, shardings)
        state, metrics = train_step(state, put_batch(batch, 1, mesh))
    same = jax.tree.map(np.array_equal, before, jax.device_get((state.trainable, state.opt_state)))
    assert bool(metrics["finite"]) == changes
    assert all(jax.tree.leaves(same)) == (not changes)
    assert int(state.step) == 1
