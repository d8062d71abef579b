"""SIGTERM, which a scheduler sends some time before it takes a machine away."""

import signal

import jax
from jax.experimental import multihost_utils

from omnivinci_jax.train.trainer import Hook, Trainer


class Termination(Hook):
    """Stops the run after the step in which the first SIGTERM came; a second one ends the process at once.

    Of several processes one may be told alone: jax tells the others, and finds a step that all of them can stop at.
    """

    def __init__(self):
        self._noted = False

    def __enter__(self) -> "Termination":
        if jax.process_count() == 1:  # otherwise jax.distributed has taken the signal
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def after_step(self, trainer: Trainer) -> None:
        """Every process asks after every step, and all get the same answer."""
        if self._noted or multihost_utils.reached_preemption_sync_point(trainer.progress.step):
            trainer.stop()

    def _note(self, _number: int, _frame: object) -> None:
        self._noted = True
        signal.signal(signal.SIGTERM, self._before)
