"""Checkpoints of a run: what its steps change, and its progress. A killed run resumes exactly from them."""

import math
import shutil
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from omnivinci_jax.errors import UserError, describe
from omnivinci_jax.model_dir import check_finite
from omnivinci_jax.paths import absolute, is_remote
from omnivinci_jax.train.state import TrainState


class Checkpoints:
    """The two newest checkpoints of a run, written atomically and in the background."""

    def __init__(self, folder: epath.Path):
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(absolute(folder), options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, run: dict[str, Any]) -> None:
        """Starts to save `state`, and the progress `run` as JSON; raises UserError if the disk is full."""
        saved = _without_frozen(state)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(saved))
        free = math.inf if is_remote(self._folder) else shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._write_error(f"it needs up to {needed:,} bytes and the disk has {free:,} free")
        items = ocp.args.Composite(state=ocp.args.StandardSave(saved), run=ocp.args.JsonSave(run))
        self._guard(lambda: self._manager.save(step, args=items))

    def restore(self, shapes: TrainState, shardings: TrainState, frozen: dict) -> tuple[TrainState, dict[str, Any]]:
        """Returns (state, run) of the newest checkpoint, sharded as `shardings`; `frozen` is from `create_frozen`.

        Raises:
            UserError: the checkpoint is damaged, or holds values that are not finite; names the one to go back to.
        """
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            _without_frozen(shapes),
            _without_frozen(shardings),
        )
        step = self.latest_step
        assert step is not None  # `restore_or_create` checks this
        try:
            # Checkpoints written before November 2026 contain an unused random key.
            if key := self._manager.item_metadata(step)["state"].tree.get("key"):
                abstract["key"] = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=shardings.step)
            items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), run=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=items)
            state, run = restored["state"], restored["run"]
            state.pop("key", None)
            check_finite(state, self._folder / str(step))
        except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
            raise self._damaged(step, error) from None
        return TrainState(**state, frozen=frozen), run

    def restore_or_create(
        self,
        shapes: TrainState,
        shardings: TrainState,
        create: Callable[[], TrainState],
        create_frozen: Callable[[], dict],
    ) -> tuple[TrainState, dict[str, Any] | None]:
        """Restores the newest checkpoint; without a checkpoint, returns a new state and None."""
        if self.latest_step is None:
            return create(), None
        return self.restore(shapes, shardings, create_frozen())

    def wait(self) -> None:
        """Waits until pending saves are on disk; raises UserError if they cannot be written."""
        self._guard(self._manager.wait_until_finished)

    def _guard(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (OSError, ValueError) as error:
            raise self._write_error(str(error).strip().splitlines()[-1][:200]) from None

    def _damaged(self, step: int, error: Exception) -> UserError:
        earlier = max((known for known in self._manager.all_steps() if known < step), default=None)
        back = "from the beginning" if earlier is None else f"from step {earlier}"
        return UserError(
            f"{self._folder / str(step)}: the checkpoint of step {step} cannot be restored: delete this folder, and "
            f"the same command goes on {back} ({describe(error)})"
        )

    def _write_error(self, reason: str) -> UserError:
        last = self.latest_step
        kept = f"the last good one is from step {last}" if last is not None else "there is no earlier one"
        return UserError(
            f"{self._folder}: the checkpoint could not be written ({reason}); {kept}; "
            "free some space and start the same command again"
        )


def _without_frozen(state: TrainState) -> dict[str, Any]:
    """Returns the fields that a step changes: all except the frozen parameters."""
    return {name: value for name, value in vars(state).items() if name != "frozen"}
