"""A trace of a few steps, for XProf (`--profile_steps`)."""

from pathlib import Path

import jax


class Profile:
    """Traces the steps of a range; what was begun is written even when the run ends in between."""

    def __init__(self, folder: Path, steps: range):
        self._folder, self._steps, self._tracing = folder, steps, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        if self._tracing:
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        """Begins the trace with the first of the steps."""
        if step in self._steps and not self._tracing:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, step: int, results: object) -> None:
        """Ends it when the last one's results are there."""
        if self._tracing and step + 1 not in self._steps:
            jax.block_until_ready(results)
            jax.profiler.stop_trace()
            self._tracing = False
