"""A run whose updates are not finite stops, and says since when."""

import jax.numpy as jnp
import pytest

from omnivinci_jax.errors import UserError
from omnivinci_jax.train.hooks import NonfiniteGuard
from omnivinci_jax.train.state import TrainState
from omnivinci_jax.train.trainer import Hook, Progress, Trainer


class Saved(Hook):
    """Stands for the hooks that save: records the steps that reach it."""

    def __init__(self):
        self.steps = []

    def after_step(self, trainer):
        self.steps.append(trainer.progress.step)


def run(finite: list[bool], limit: int, start: int = 0) -> tuple[Progress, list[int], str]:
    """Runs steps whose updates are finite or not; returns the progress, the steps that were saved, and the error."""
    progress, saved, error = Progress(step=start), Saved(), ""
    guard = NonfiniteGuard(progress, limit, lambda step: f"the samples of step {step}")

    def train_step(state, batch):
        return state, {"loss": jnp.array(1.0), "finite": jnp.array(batch)}

    trainer = Trainer(TrainState(0, {}, {}, ()), train_step, progress, [guard, saved])
    try:
        trainer.run(finite, lambda trainer: trainer.progress.step == start + len(finite))
    except UserError as raised:
        error = str(raised)
    return progress, saved.steps, error


def test_too_many_in_a_row_stop_the_run():
    progress, _, error = run([True, False, True, False, False, False, True, True, True], limit=3)
    assert progress.step == 7  # the loop learns of a step while the next one runs
    assert error.startswith("the loss or a gradient is not finite since step 4 (3 updates in a row, as many as config.")
    assert error.endswith("check the samples of step 4") and "\n" not in error


def test_too_many_in_all_stop_the_run():
    _, _, error = run([False, True, False, True, False, True, True], limit=2)
    assert "since step 5 (for the 3th time, more than config.max_nonfinite allows)" in error


def test_a_run_that_never_updates_ends_with_an_error_and_saves_nothing_more():
    progress, saved, error = run([False, False, False], limit=10, start=6)
    assert "since step 7 (all steps, so nothing was learned and no model is written)" in error
    assert progress.nonfinite == 3 and saved == [7, 8]
    assert run([False], limit=10)[2]


@pytest.mark.parametrize("finite", [[True, False], [False, True], [False, False, True, False, False]])
def test_a_run_that_updates_ends_well(finite):
    progress, saved, error = run(finite, limit=10)
    assert not error and len(saved) == len(finite) and progress.nonfinite == finite.count(False)
