"""SIGTERM, which a scheduler sends some time before it takes a machine away."""

import signal

import jax
from jax.experimental import multihost_utils


class Termination:
    """Notes the first SIGTERM, so that the loop can save and end; a second one ends the process at once.

    Of several processes one may be told alone: jax spreads the word and finds a step that all of them can stop at.
    """

    def __init__(self):
        self._noted = False

    def __enter__(self) -> "Termination":
        if jax.process_count() == 1:  # otherwise jax.distributed has taken the signal
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def requested(self, step: int) -> bool:
        """Whether to end after this step; every process asks at every step, and all get the same answer."""
        return self._noted or multihost_utils.reached_preemption_sync_point(step)

    def _note(self, _number: int, _frame: object) -> None:
        self._noted = True
        signal.signal(signal.SIGTERM, self._before)
