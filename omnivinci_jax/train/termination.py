"""Handles SIGTERM, which a scheduler sends some time before it takes a machine away."""

import signal

import jax
from jax.experimental import multihost_utils

from omnivinci_jax.train.trainer import Hook, Trainer


class Termination(Hook):
    """Stops the run after the step in which the first SIGTERM arrives; a second one ends the process at once.

    If only one of several processes receives it, jax tells the others and finds a step at which all of them can stop.
    """

    def __init__(self):
        self._received = False

    def __enter__(self) -> "Termination":
        if jax.process_count() == 1:  # otherwise jax.distributed handles the signal
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def after_step(self, trainer: Trainer) -> None:
        """Stops the run if any process received the signal; all processes get the same answer after every step."""
        if self._received or multihost_utils.reached_preemption_sync_point(trainer.progress.step):
            trainer.stop()

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._received = True
        signal.signal(signal.SIGTERM, self._before)
