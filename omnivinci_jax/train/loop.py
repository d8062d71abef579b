"""The training run: from a TrainConfig to a work directory with checkpoints, metrics, the best model and a report."""

import logging
import time
from dataclasses import asdict, dataclass, field

import jax
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from omnivinci_jax import model_dir
from omnivinci_jax.data.index import Index
from omnivinci_jax.data.loader import Plan, read_batches
from omnivinci_jax.data.mixture import Mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.setup import make_processor, open_data, open_mixture
from omnivinci_jax.errors import ConfigError, DataError, Preempted, UserError
from omnivinci_jax.evaluation.accuracy import Evaluation, accuracy_table, evaluate
from omnivinci_jax.evaluation.report import write_report
from omnivinci_jax.mesh.mesh import make_mesh, on_mesh
from omnivinci_jax.mesh.processes import atomic_directory, check_same, is_main
from omnivinci_jax.mesh.rules import check_batch, own_groups, put_batch
from omnivinci_jax.paths import Mirrored, absolute
from omnivinci_jax.sequence.assemble import check_capacity
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.checkpoints import Checkpoints
from omnivinci_jax.train.claim import Claim
from omnivinci_jax.train.metrics import Meter, MetricsLog
from omnivinci_jax.train.optimizer import learning_rate, make_optimizer
from omnivinci_jax.train.profile import Profile
from omnivinci_jax.train.source_metrics import SourceMeter
from omnivinci_jax.train.start import find_start
from omnivinci_jax.train.state import TrainState, abstract_state, create_frozen, create_state, make_model, merge
from omnivinci_jax.train.step import Metrics, make_eval_step, make_train_step
from omnivinci_jax.train.termination import Termination
from omnivinci_jax.train.workdir import check_workdir, claimed

log = logging.getLogger("omnivinci")


@dataclass
class Progress:
    """What a run knows beside its TrainState; saved with every checkpoint.

    step: steps done, which is also the place in the data; nonfinite: updates left out among them.
    read: samples of all processes; skipped: those that could not be read, by source.
    best: best validation accuracy so far, -1 before the first.
    data: digest of what the order of the samples depends on.
    block: the block of samples that the next step begins in, and its first group (`Plan`).
    """

    step: int = 0
    read: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    nonfinite: int = 0
    best: float = -1.0
    seconds: float = 0.0
    data: str = ""
    block: tuple[int, int] = (0, 0)


def train(config: TrainConfig, workdir: epath.Path, profile_steps: range = range(0)) -> Evaluation | None:
    """Trains, resuming what `workdir` holds; returns the held-out evaluation of the best model, where there is one.

    Args:
        profile_steps: of these a trace is written to workdir/profile, for XProf.

    Raises:
        UserError: any problem with configuration, data, work directory or disk.
        Preempted: SIGTERM came, and the run is saved; or another process was lost.
    """
    workdir = absolute(workdir)
    check_workdir(workdir, config)
    check_capacity(config.data.capacity, config.model)
    mesh = make_mesh(config.mesh)
    check_batch(config.data, config.microbatches, mesh)
    model = make_model(config, mesh.devices.flat[0].platform)
    optimizer = make_optimizer(config.optimizer, config.steps, config.model)
    start = find_start(config, model)
    shapes, shardings = abstract_state(model, optimizer, config, mesh)
    processor = make_processor(config)
    mixture = open_mixture(processor, config.data)
    check_same("the training data", mixture.digest)
    # What is measured at the end is opened now, so that a mistake shows before the work and not after it.
    val_index, held_out = (
        open_data(path, processor, config.data) if path else None for path in (config.data.val, config.data.held_out)
    )
    for index in filter(None, (mixture, val_index, held_out)):
        for problem in index.problems:
            log.warning("left out: %s", problem)

    with claimed(workdir, config) as claim, on_mesh(mesh):
        checkpoints = Checkpoints(workdir / "checkpoints")
        if checkpoints.latest_step is None:
            state = create_state(model, optimizer, config, shardings, start)
            progress = Progress(data=mixture.digest)
        else:
            frozen = create_frozen(model, optimizer, config, shardings, start)
            state, saved = checkpoints.restore(shapes, shardings, frozen)
            progress = Progress(**saved)
            if progress.data != mixture.digest:
                raise ConfigError(
                    f"{workdir}: the training data are not those that the run began with, nor is then their order; "
                    "bring those back, or start another run from its model (config.start_from)"
                )
            log.info("resumed at step %d", progress.step)
        train_step = make_train_step(
            model, optimizer, config.align_weight, shardings, config.microbatches, len(mixture.sources)
        )
        run = _Run(config, workdir, processor, model, mesh, claim, checkpoints, progress, mixture, val_index, held_out)
        try:
            frozen = run.steps(state, train_step, profile_steps)
            return run.finish(shardings, frozen)
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
                raise
            # What a process sees of another's end is a broken connection in the middle of a step.
            reason = str(error).strip().splitlines()[0][:200]
            raise Preempted(
                f"another process was lost ({reason}); the last checkpoint is where to go on from"
            ) from None
        finally:
            run.files.sync()


class _Run:
    """The loop's state on the host."""

    def __init__(
        self, config, workdir, processor, model, mesh, claim, checkpoints, progress, mixture, val_index, held_out
    ):
        self.config: TrainConfig = config
        self.workdir: epath.Path = workdir
        self.files = Mirrored(workdir, ("metrics.jsonl", self._skipped_name))
        self.processor: Processor = processor
        self.mesh: Mesh = mesh
        self.claim: Claim = claim
        self.checkpoints: Checkpoints = checkpoints
        self.progress: Progress = progress
        self.mixture: Mixture = mixture
        self.val_index: Index | None = val_index
        self.held_out: Index | None = held_out
        self.plan = Plan(mixture, config.data.capacity, config.seed, tuple(progress.block))
        self.sources = SourceMeter(mixture)
        self.eval_step = make_eval_step(model, mesh, align=config.align_weight > 0)
        self.metrics = MetricsLog(self.files.local, progress.step) if is_main() else None
        self.started = time.monotonic() - progress.seconds

    def steps(self, state: TrainState, train_step, profile_steps: range) -> dict:
        """All steps from where the run stands; returns the frozen parameters."""
        config, progress, groups = self.config, self.progress, self.config.data.groups
        own = own_groups(groups, self.mesh)
        batches = read_batches(
            self.mixture, self.plan, self.processor, config.data, own, start=progress.step, stop=config.steps
        )
        schedule = learning_rate(config.optimizer, config.steps)
        bar = tqdm(
            total=config.steps, initial=progress.step, desc="train", unit="step", dynamic_ncols=True,
            disable=not is_main(),
        )  # fmt: skip
        meter, pending = Meter(config, self.mesh), None
        with bar, Termination() as termination, Profile(self.files.local / "profile", profile_steps) as profile:
            for batch, skipped in meter.waited(batches):
                self._note_skipped(skipped)
                profile.before(progress.step + 1)
                state, metrics = train_step(state, put_batch(batch, groups, self.mesh))
                progress.step += 1
                self._look(pending)  # one step late: the device works on while the host looks
                pending = progress.step, metrics
                profile.after(progress.step, metrics)
                meter.add(self.mixture.sizes[self._samples(progress.step)])
                bar.update()
                step = progress.step
                if step % config.log_every == 0 or step == config.steps:
                    self._look(pending)
                    pending = None
                    values = {name: float(value) for name, value in jax.device_get(metrics).items() if not value.ndim}
                    values["learning_rate"] = float(schedule(step - 1 - progress.nonfinite))
                    values |= meter.rates() | self.sources.values(progress.skipped)
                    self._write(step, values)
                    bar.set_postfix_str(
                        f"loss {values['loss']:.3f}, {values['step_seconds']:.2f} s/step, "
                        f"{values['tokens_per_second']:.0f} tokens/s"
                    )
                if self.val_index and (step % config.eval_every == 0 or step == config.steps):
                    with meter.paused():
                        self._measure(state)
                ending = termination.requested(step)
                if step % config.checkpoint_every == 0 or step == config.steps or ending:
                    self._look(pending)
                    pending = None
                    progress.seconds = time.monotonic() - self.started
                    progress.block = self.plan.block_of(step * groups)
                    with meter.saving():
                        self.claim.check()
                        self.files.sync()
                        self.checkpoints.save(step, state, asdict(progress))
                if ending and step < config.steps:
                    break
        self.checkpoints.wait()
        if progress.step < config.steps:
            self._close()
            raise Preempted(f"SIGTERM: saved at step {progress.step}; the same command goes on from there")
        if not self.val_index:
            self._export(state)
        return state.frozen

    def finish(self, shardings: TrainState, frozen: dict) -> Evaluation | None:
        """Measures the best model on the held-out data and writes the report."""
        params = merge(frozen, model_dir.load_params(self._best, shardings.trainable))
        evaluation = None
        if self.held_out:
            evaluation = self._evaluate(params, self.held_out)
        self._close()
        if is_main():
            parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
            write_report(self.files.local, evaluation, time.monotonic() - self.started, parameters)
            if evaluation:
                print(accuracy_table(evaluation))
            print(f"{self._best.name}: {self._best}\nreport: {self.workdir / 'report.md'}")
        return evaluation

    @property
    def _best(self) -> epath.Path:
        """Where the best model is kept, or of it the adapters, if they alone train."""
        return self.workdir / ("adapters" if self.config.lora.rank else "model")

    def _measure(self, state: TrainState) -> None:
        """Validates and keeps the model if it is the best so far."""
        result = self._evaluate(state.params, self.val_index)
        self._write(self.progress.step, result.metrics, "val")
        if result.overall > self.progress.best:
            self.progress.best = result.overall
            self._export(state)

    def _evaluate(self, params: dict, index: Index) -> Evaluation:
        return evaluate(self.eval_step, params, index, self.processor, self.config.data, self.mesh)

    def _export(self, state: TrainState) -> None:
        if self.config.lora.rank:
            with atomic_directory(self._best, replace=True) as part:
                model_dir.save_params(part, state.trainable)
        else:
            model_dir.save(self._best, self.config.model, state.params, self.processor.tokenizer)

    def _write(self, step: int, values: dict[str, float], split: str = "train") -> None:
        if self.metrics:
            self.metrics.write(step, values, split)

    def _close(self) -> None:
        if self.metrics:
            self.metrics.close()

    def _samples(self, step: int) -> list[int]:
        """Numbers of the samples that were planned for a step, counted from 1."""
        groups = self.config.data.groups
        planned = (self.plan[number] for number in range((step - 1) * groups, step * groups))
        return [sample for rows in planned for row in rows for sample in row]

    def _look(self, pending: tuple[int, Metrics] | None) -> None:
        """Counts what a step could not use, and stops the run when that is too much."""
        if pending is None:
            return
        step, metrics = pending
        metrics, samples, progress = jax.device_get(metrics), self._samples(step), self.progress
        progress.read += int(metrics["samples"])
        for source, count in self.sources.add(samples, metrics).items():
            progress.skipped[source] = progress.skipped.get(source, 0) + count
        if not metrics["finite"]:
            self._nonfinite(step, samples)
        skipped = sum(progress.skipped.values())
        seen = progress.read + skipped
        # A share needs some samples to be one: below a hundred, a single bad file would end every run.
        if skipped > self.config.data.max_skipped * max(seen, 100):
            file = self.files.local / self._skipped_name
            listed = sorted(set(file.read_text().splitlines())) if file.exists() else []
            raise DataError(
                f"{skipped} of {seen} samples could not be read, more than data.max_skipped = "
                f"{self.config.data.max_skipped:g} allows:\n  " + "\n  ".join(listed[:50])
            )

    def _nonfinite(self, step: int, samples: list[int]) -> None:
        """Counts an update that was left out, names its samples, and stops the run when there are too many."""
        self.progress.nonfinite += 1
        where = f"step {step}, " + ", ".join(map(self.mixture.where, sorted(samples)))
        log.warning("update left out, the loss or a gradient is not finite: %s", where)
        if self.progress.nonfinite > self.config.max_nonfinite:
            raise UserError(
                f"the loss or a gradient is not finite for the {self.progress.nonfinite}th time, more than "
                f"config.max_nonfinite allows; lower config.optimizer.learning_rate or look at {where}"
            )

    @property
    def _skipped_name(self) -> str:
        return "skipped.txt" if is_main() else f"skipped.{jax.process_index()}.txt"

    def _note_skipped(self, skipped: dict[int, str]) -> None:
        """Writes down what this process could not read."""
        for line in skipped.values():
            log.warning("skipped: %s", line)
            with open(self.files.local / self._skipped_name, "a") as file:
                file.write(line + "\n")
