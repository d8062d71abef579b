"""Checkpoints of a run: what its steps change and its progress, so that a killed run resumes exactly."""

import math
import shutil
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from omnivinci_jax.errors import UserError
from omnivinci_jax.paths import absolute, is_remote
from omnivinci_jax.train.state import TrainState


class Checkpoints:
    """The newest two checkpoints of a run, written in the background and whole or not at all."""

    def __init__(self, folder: epath.Path):
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(absolute(folder), options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, run: dict[str, Any]) -> None:
        """Starts to save; `run` is the progress beside the state, as JSON. Raises UserError on a full disk."""
        changing = _changing(state)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(changing))
        free = math.inf if is_remote(self._folder) else shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._unwritten(f"it takes up to {needed:,} bytes and the disk has {free:,}")
        items = ocp.args.Composite(state=ocp.args.StandardSave(changing), run=ocp.args.JsonSave(run))
        self._guard(lambda: self._manager.save(step, args=items))

    def restore(self, shapes: TrainState, shardings: TrainState, frozen: dict) -> tuple[TrainState, dict[str, Any]]:
        """(state, run) of the newest checkpoint, laid out as `shardings`; `frozen` is what `create_frozen` returned."""
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            _changing(shapes),
            _changing(shardings),
        )
        step = self.latest_step
        assert step is not None  # `restore_or_create` asks
        # Checkpoints written before November 2026 hold a random key, which nothing read.
        if key := self._manager.item_metadata(step)["state"].tree.get("key"):
            abstract["key"] = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=shardings.step)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), run=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        state, run = restored["state"], restored["run"]
        state.pop("key", None)
        return TrainState(**state, frozen=frozen), run

    def restore_or_create(
        self,
        shapes: TrainState,
        shardings: TrainState,
        create: Callable[[], TrainState],
        create_frozen: Callable[[], dict],
    ) -> tuple[TrainState, dict[str, Any] | None]:
        """What `restore` returns, or a new state and None where there is no checkpoint yet."""
        if self.latest_step is None:
            return create(), None
        return self.restore(shapes, shardings, create_frozen())

    def wait(self) -> None:
        """Until what was started is on disk; raises UserError when it could not be written."""
        self._guard(self._manager.wait_until_finished)

    def _guard(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (OSError, ValueError) as error:
            raise self._unwritten(str(error).strip().splitlines()[-1][:200]) from None

    def _unwritten(self, reason: str) -> UserError:
        last = self.latest_step
        kept = f"the last good one is of step {last}" if last is not None else "there is none yet"
        return UserError(
            f"{self._folder}: the checkpoint could not be written ({reason}); {kept}; "
            "make room and start the same command again"
        )


def _changing(state: TrainState) -> dict[str, Any]:
    """What a step changes, by field: all but the frozen parameters."""
    return {name: value for name, value in vars(state).items() if name != "frozen"}
