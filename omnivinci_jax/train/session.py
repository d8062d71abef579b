"""The session of a running run: its claimed work directory, checkpoints and metrics."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
from etils import epath
from jax.sharding import Mesh

from omnivinci_jax.errors import Preempted
from omnivinci_jax.mesh.mesh import on_mesh
from omnivinci_jax.mesh.processes import is_main, lost_process_as_preempted
from omnivinci_jax.paths import LocalMirror
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.checkpoints import Checkpoints
from omnivinci_jax.train.claim import Claim
from omnivinci_jax.train.metrics import MetricsLog
from omnivinci_jax.train.trainer import Trainer
from omnivinci_jax.train.workdir import open_workdir


@dataclass(frozen=True)
class Session:
    """A claimed work directory. `cleanup` runs when the session ends."""

    checkpoints: Checkpoints
    files: LocalMirror
    claim: Claim
    cleanup: ExitStack

    @property
    def folder(self) -> Path:
        """The work directory, or its local mirror if it is in a bucket."""
        return self.files.local

    def open_metrics(self, step: int) -> MetricsLog | None:
        """Opens the metrics, cut back to `step`; returns None if another process writes them."""
        if not is_main():
            return None
        metrics_log = MetricsLog(self.folder, step)
        self.cleanup.callback(metrics_log.close)
        return metrics_log

    def prepare_save(self) -> None:
        """Uploads the files beside a checkpoint; raises UserError if another run has taken over the directory."""
        self.claim.check()
        self.files.sync()

    def check_finished(self, trainer: Trainer) -> None:
        """Waits for the last checkpoint; raises Preempted if the run stopped before its last step."""
        self.checkpoints.wait()
        if not trainer.is_last:
            step = trainer.progress.step
            raise Preempted(f"SIGTERM: saved at step {step}; the same command resumes from there")


def skipped_name() -> str:
    """Returns the name of the file where this process lists the samples that it could not read."""
    return "skipped.txt" if is_main() else f"skipped.{jax.process_index()}.txt"


@contextmanager
def open_session(workdir: epath.Path, config: TrainConfig, mesh: Mesh) -> Iterator[Session]:
    """Claims `workdir`, writes `config` into it, and sets the mesh and the logical axis rules until the block ends.

    Raises:
        ConfigError: another run uses `workdir`.
        Preempted: another process was lost.
    """
    with ExitStack() as stack:
        claim = stack.enter_context(open_workdir(workdir, config))
        stack.enter_context(on_mesh(mesh))
        files = LocalMirror(workdir, ("metrics.jsonl", "answers.jsonl", skipped_name()))
        stack.callback(files.sync)
        stack.enter_context(lost_process_as_preempted())
        yield Session(Checkpoints(workdir / "checkpoints"), files, claim, stack)
