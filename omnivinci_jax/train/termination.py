"""SIGTERM, which a scheduler sends some time before it takes a machine away."""

import signal


class Termination:
    """Notes the first SIGTERM, so that the loop can save and end; a second one ends the process at once."""

    requested = False

    def __enter__(self) -> "Termination":
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, _number: int, _frame: object) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, self._before)
