"""The training loop: a state, a jitted step, batches, and hooks for everything else.

It knows neither the model nor the data. A run that trains something else brings its own loss function (train/step.py),
batches and hooks; those of train/hooks.py serve any run.
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
    """What a run knows beside its TrainState; saved with every checkpoint. Runs add fields of their own.

    step: steps done; nonfinite: updates left out among them.
    best: best validation score so far, -1 before the first.
    seconds: wall-clock time of the run up to the checkpoint, restarts included.
    """

    step: int = 0
    nonfinite: int = 0
    best: float = -1.0
    seconds: float = 0.0


class Hook:
    """What a run does beside its updates. Every method is optional; the hook is entered and left with the loop."""

    def __enter__(self) -> "Hook":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def before_step(self, trainer: "Trainer") -> None:
        """Before step `trainer.progress.step + 1` starts."""

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """With the metrics of every step, in order: usually when the next step has started."""

    def after_step(self, trainer: "Trainer") -> None:
        """After a step has started, while the device may still compute it."""


class Trainer:
    """The loop and what it is at. Hooks and batch generators read from it.

    state: after the last step that started; its buffers are donated to the next step.
    metrics: of that step, on the device.
    pending: the step and its metrics until the hooks have them.
    is_last: whether that step is the last of the run; stopping: whether a hook has asked to end before.
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
        """Trains until `is_done` (asked before the first and after every step), until a hook calls `stop`, or until the
        batches end.

        `batches` may read `trainer.state` between two steps, to sample from the current parameters for instance.
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
                self.consume_metrics()  # of the step before: the device computes this one meanwhile
                self.pending = self.progress.step, self.metrics
                self.is_last = is_done(self)
                for hook in self.hooks:
                    hook.after_step(self)
                if self.is_last or self.stopping:
                    break

    def consume_metrics(self) -> None:
        """Gives the metrics of the last step to the hooks, unless they have them; waits for the device."""
        if self.pending:
            step, metrics = self.pending
            self.pending, metrics = None, jax.device_get(metrics)
            for hook in self.hooks:
                hook.on_metrics(step, metrics)

    def stop(self) -> None:
        """Ends the run after this step."""
        self.stopping = True

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run, restarts included."""
        return time.monotonic() - self._started
