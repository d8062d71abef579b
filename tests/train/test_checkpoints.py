import shutil
from collections import namedtuple

import jax.numpy as jnp
import pytest

from omnivinci_jax.errors import UserError
from omnivinci_jax.train.checkpoints import Checkpoints
from omnivinci_jax.train.state import TrainState

STATE = TrainState(jnp.array(3), {"weights": jnp.arange(6.0)}, {"held": jnp.arange(99.0)}, (), jnp.zeros(2))


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, STATE, {"step": 3})
    checkpoints.wait()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(UserError) as error:
        checkpoints.save(6, STATE, {"step": 6})
    assert "36 bytes and the disk has 1); the last good one is of step 3" in str(error.value)
    assert "\n" not in str(error.value) and checkpoints.latest_step == 3
