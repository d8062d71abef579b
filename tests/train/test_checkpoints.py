import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from omnivinci_jax.errors import UserError
from omnivinci_jax.train.checkpoints import Checkpoints
from omnivinci_jax.train.state import TrainState

STATE = TrainState(jnp.array(3), {"weights": jnp.arange(6.0)}, {"held": jnp.arange(99.0)}, ())


def test_an_old_checkpoint_with_a_random_key_restores(tmp_path):
    """Runs wrote such checkpoints until November 2026."""
    old = {name: value for name, value in vars(STATE).items() if name != "frozen"} | {
        "key": jnp.arange(2, dtype=jnp.uint32)
    }
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        items = ocp.args.Composite(state=ocp.args.StandardSave(old), run=ocp.args.JsonSave({"step": 3}))
        manager.save(3, args=items)
    checkpoints = Checkpoints(epath.Path(tmp_path) / "checkpoints")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes, shardings = jax.eval_shape(lambda: STATE), jax.tree.map(lambda _: device, STATE)
    state, run = checkpoints.restore(shapes, shardings, STATE.frozen)
    assert run == {"step": 3}
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
    checkpoints.save(6, state, run)  # the run continues
    checkpoints.wait()
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(tmp_path / "checkpoints" / "6" / "state").item_metadata.tree
    assert set(stored) == {"step", "trainable", "opt_state"}
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(shapes, shardings, STATE.frozen)[0], STATE)


def test_a_leaf_missing_from_a_checkpoint_is_an_error(tmp_path):
    checkpoints = Checkpoints(epath.Path(tmp_path) / "checkpoints")
    checkpoints.save(3, STATE, {"step": 3})
    checkpoints.wait()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    more = STATE.replace(trainable=STATE.trainable | {"bias": jnp.zeros(2)})
    with pytest.raises(ValueError, match="bias"):
        checkpoints.restore(more, jax.tree.map(lambda _: device, more), STATE.frozen)


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = Checkpoints(epath.Path(tmp_path) / "checkpoints")
    checkpoints.save(3, STATE, {"step": 3})
    checkpoints.wait()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(UserError) as error:
        checkpoints.save(6, STATE, {"step": 6})
    assert "28 bytes and the disk has 1 free); the last good one is from step 3" in str(error.value)
    assert "\n" not in str(error.value) and checkpoints.latest_step == 3


def restore(folder: epath.Path) -> tuple[TrainState, dict]:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes, shardings = jax.eval_shape(lambda: STATE), jax.tree.map(lambda _: device, STATE)
    return Checkpoints(folder).restore(shapes, shardings, STATE.frozen)


def error(folder: epath.Path) -> str:
    with pytest.raises(UserError) as raised:
        restore(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", ["state/manifest.ocdbt", "state/_METADATA", "run/metadata"])
def test_a_file_cut_short_names_the_step_and_the_one_before(name, tmp_path):
    folder = epath.Path(tmp_path) / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in (3, 6):
        checkpoints.save(step, STATE, {"step": step})
    checkpoints.wait()
    file = folder / "6" / name
    file.write_bytes(file.read_bytes()[: file.stat().length // 2])
    message = error(folder)
    assert message.startswith(f"{folder / '6'}: the checkpoint of step 6 cannot be restored: delete this folder, and ")
    assert "the same command goes on from step 3 (" in message
    (folder / "6").rmtree()
    assert restore(folder)[1] == {"step": 3}


def test_a_checkpoint_with_values_that_are_not_finite_is_an_error(tmp_path):
    folder = epath.Path(tmp_path) / "checkpoints"
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, STATE.replace(trainable={"weights": jnp.array([1.0, jnp.nan] * 3)}), {"step": 3})
    checkpoints.wait()
    message = error(folder)
    assert "the checkpoint of step 3 cannot be restored" in message and "goes on from the beginning" in message
    assert f"{folder / '3'}: trainable/weights holds values that are not finite" in message
