"""Hooks for any run: log, evaluate, save, and stop after too many nonfinite updates."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Protocol, runtime_checkable

import jax
import numpy as np
import optax
from tqdm import tqdm

from omnivinci_jax.errors import UserError
from omnivinci_jax.mesh.processes import is_main
from omnivinci_jax.train.checkpoints import Checkpoints
from omnivinci_jax.train.metrics import Meter, MetricsLog
from omnivinci_jax.train.state import TrainState
from omnivinci_jax.train.trainer import Hook, Progress, Trainer

log = logging.getLogger("omnivinci")

_SHOWN = {
    "reward": "reward {:.3f}",
    "loss": "loss {:.3f}",
    "step_seconds": "{:.2f} s/step",
    "tokens_per_second": "{:.0f} tokens/s",
}


@runtime_checkable
class Score(Protocol):
    """The result of an evaluation."""

    @property
    def overall(self) -> float:
        """The score that selects the best model; larger is better."""
        ...

    @property
    def metrics(self) -> dict[str, float]:
        """All results by name."""
        ...


class Log(Hook):
    """Logs the scalar metrics of every `every`-th step and the last, and shows a progress bar.

    Args:
        metrics_log: None if another process writes it.
        schedule: maps the index of an update to its learning rate.
        steps: expected steps, used only for the bar.
        values: functions that return further metrics by name.
    """

    def __init__(
        self,
        metrics_log: MetricsLog | None,
        schedule: optax.Schedule,
        *,
        every: int,
        steps: range,
        values: Sequence[Callable[[], Mapping[str, float]]] = (),
    ):
        self._log, self._every, self._steps, self._values = metrics_log, every, steps, values
        self._schedule = jax.jit(schedule)  # one program, not a dozen

    def __enter__(self) -> "Log":
        self._bar = tqdm(
            total=self._steps.stop, initial=self._steps.start, desc="train", unit="step", dynamic_ncols=True,
            disable=not is_main(),
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def after_step(self, trainer: Trainer) -> None:
        """See `Hook`."""
        self._bar.update()
        progress = trainer.progress
        if progress.step % self._every and not trainer.is_last:
            return
        trainer.consume_metrics()
        values = {name: float(value) for name, value in jax.device_get(trainer.metrics).items() if not value.ndim}
        values["learning_rate"] = np.asarray(self._schedule(progress.step - 1 - progress.nonfinite)).item()
        for further in self._values:
            values |= further()
        if self._log:
            self._log.write(progress.step, values)
        self._bar.set_postfix_str(
            ", ".join(text.format(values[name]) for name, text in _SHOWN.items() if name in values)
        )


class Evaluate(Hook):
    """Evaluates every `every`-th step and the last, and keeps the state with the best score so far.

    Args:
        evaluate: maps parameters to their score.
        keep: saves the best state.
    """

    def __init__(
        self,
        evaluate: Callable[[dict], Score],
        keep: Callable[[TrainState], None],
        metrics_log: MetricsLog | None,
        meter: Meter,
        *,
        every: int,
    ):
        self._evaluate, self._keep, self._log, self._meter, self._every = evaluate, keep, metrics_log, meter, every

    def after_step(self, trainer: Trainer) -> None:
        """See `Hook`."""
        progress = trainer.progress
        if progress.step % self._every and not trainer.is_last:
            return
        with self._meter.paused():
            score = self._evaluate(trainer.state.params)
            if self._log:
                self._log.write(progress.step, score.metrics, "val")
            if score.overall > progress.best:
                progress.best = score.overall
                self._keep(trainer.state)


class Save(Hook):
    """Saves a checkpoint after every `every`-th step, after the last, and when the run stops early.

    Args:
        prepare: called before every checkpoint; raises to prevent it.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        meter: Meter,
        *,
        every: int,
        prepare: Callable[[], None],
    ):
        self._checkpoints, self._meter, self._every, self._prepare = checkpoints, meter, every, prepare

    def after_step(self, trainer: Trainer) -> None:
        """See `Hook`."""
        if trainer.progress.step % self._every == 0 or trainer.is_last or trainer.stopping:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves a checkpoint of the last step, unless it has one."""
        progress = trainer.progress
        if self._checkpoints.latest_step == progress.step:
            return
        trainer.consume_metrics()
        progress.seconds = trainer.seconds
        with self._meter.saving():
            self._prepare()
            self._checkpoints.save(progress.step, trainer.state, asdict(progress))


class NonfiniteGuard(Hook):
    """Counts updates skipped because the loss or a gradient is not finite, and stops a run that learns nothing.

    It must precede the hooks that save, so that a run without a single update since its start writes no model.

    Args:
        limit: largest number of skipped updates; so many in a row already stop the run.
        where: describes the samples of a step, for messages.
    """

    def __init__(self, progress: Progress, limit: int, where: Callable[[int], str]):
        self._progress, self._limit, self._where = progress, limit, where
        self._first_step = progress.step + 1

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Raises UserError if more than `limit` updates were skipped, or `limit` in a row."""
        progress = self._progress
        if metrics["finite"]:
            progress.nonfinite_since = 0
            return
        progress.nonfinite += 1
        progress.nonfinite_since = progress.nonfinite_since or step
        log.warning("update skipped, because the loss or a gradient is not finite: %s", self._where(step))
        in_a_row = step - progress.nonfinite_since + 1
        if in_a_row >= max(self._limit, 1):
            raise self._error(f"{in_a_row} updates in a row, as many as config.max_nonfinite allows")
        if progress.nonfinite > self._limit:
            raise self._error(f"for the {progress.nonfinite}th time, more than config.max_nonfinite allows")

    def after_step(self, trainer: Trainer) -> None:
        """Raises UserError after the last step if no step of this process updated anything."""
        if trainer.is_last:
            trainer.consume_metrics()
            if 0 < self._progress.nonfinite_since <= self._first_step:
                raise self._error("all steps, so nothing was learned and no model is written")

    def _error(self, how_long: str) -> UserError:
        since = self._progress.nonfinite_since
        return UserError(
            f"the loss or a gradient is not finite since step {since} ({how_long}); lower "
            f"config.optimizer.learning_rate, or check {self._where(since)}"
        )
