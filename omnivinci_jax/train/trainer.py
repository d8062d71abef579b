"""The training loop: a state, a jitted step, batches, and hooks for everything else.

It does not depend on the model or the data. A run that trains something else brings its own loss function
(train/step.py), batches and hooks; the hooks in train/hooks.py work for any run.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from omnivinci_jax.train.state import TrainState
from omnivinci_jax.train.step import Metrics


@dataclass
class Progress:
    """The progress of a run, saved with the TrainState in every checkpoint. Runs may add fields in a subclass.

    step: finished steps; nonfinite: how many of them skipped their update; nonfinite_since: the first of the skipped
        steps that are the last ones so far, 0 if the last update was made.
    best: best validation score so far, -1 before the first validation.
    seconds: wall-clock time of the run up to the checkpoint, across restarts.
    """

    step: int = 0
    nonfinite: int = 0
    nonfinite_since: int = 0
    best: float = -1.0
    seconds: float = 0.0


class Hook:
    """Something that a run does beside its updates. Every method is optional; the loop enters and exits each hook."""

    def __enter__(self) -> "Hook":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def before_step(self, trainer: "Trainer") -> None:
        """Called before step `trainer.progress.step + 1` starts."""

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Called with the metrics of every step, in order, usually after the next step has started."""

    def after_step(self, trainer: "Trainer") -> None:
        """Called after a step has started, while the device may still compute it."""


class Trainer:
    """The training loop. Hooks and batch generators may read its attributes.

    state: the state after the last started step; its buffers are donated to the next step.
    metrics: metrics of that step, on the device.
    pending: that step and its metrics, until the hooks receive them.
    is_last: whether that step is the last of the run; stopping: whether a hook asked to stop early.
    """

    def __init__(
        self,
        state: TrainState,
        train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
        progress: Progress,
        hooks: Sequence[Hook],
    ):
        self.state, self.progress, self.hooks = state, progress, hooks
        self.metrics: Metrics = {}
        self.is_last = self.stopping = False
        self._train_step = train_step
        self.pending: tuple[int, Metrics] | None = None
        self._started = time.monotonic() - progress.seconds

    def run(self, batches: Iterable[Any], is_done: Callable[["Trainer"], bool]) -> None:
        """Trains until `is_done` returns true, a hook calls `stop`, or the batches end.

        `is_done` is called before the first step and after every step. `batches` may read `trainer.state` between two
        steps, for example to sample from the current parameters.
        """
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook)
            self.is_last = is_done(self)
            for batch in () if self.is_last else batches:
                for hook in self.hooks:
                    hook.before_step(self)
                self.state, self.metrics = self._train_step(self.state, batch)
                self.progress.step += 1
                self.consume_metrics()  # of the previous step, while the device computes this one
                self.pending = self.progress.step, self.metrics
                self.is_last = is_done(self)
                for hook in self.hooks:
                    hook.after_step(self)
                if self.is_last or self.stopping:
                    break

    def consume_metrics(self) -> None:
        """Passes the metrics of the last step to the hooks, unless they have them; waits for the device."""
        if self.pending:
            step, metrics = self.pending
            self.pending, metrics = None, jax.device_get(metrics)
            for hook in self.hooks:
                hook.on_metrics(step, metrics)

    def stop(self) -> None:
        """Stops the run after this step."""
        self.stopping = True

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run, across restarts."""
        return time.monotonic() - self._started
