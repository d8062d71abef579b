"""Traces a few steps for XProf (`--profile_steps`)."""

from pathlib import Path

import jax

from omnivinci_jax.train.trainer import Hook, Trainer


class Profile(Hook):
    """Traces a range of steps into a folder; writes the trace even if the run ends within the range."""

    def __init__(self, folder: Path, steps: range):
        self._folder, self._steps, self._tracing = folder, steps, False

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            jax.profiler.stop_trace()

    def before_step(self, trainer: Trainer) -> None:
        """Starts the trace at the first step of the range."""
        if trainer.progress.step + 1 in self._steps and not self._tracing:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after_step(self, trainer: Trainer) -> None:
        """Ends the trace when the results of the last step are ready."""
        if self._tracing and trainer.progress.step + 1 not in self._steps:
            jax.block_until_ready(trainer.metrics)
            jax.profiler.stop_trace()
            self._tracing = False
