"""The training run: from a TrainConfig to a work directory with checkpoints, metrics, the best model and a report."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tqdm import tqdm

from omnivinci_jax import model_dir
from omnivinci_jax.data.index import Index
from omnivinci_jax.data.loader import train_batches
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.setup import make_processor, open_data
from omnivinci_jax.errors import ConfigError, DataError, Preempted, UserError
from omnivinci_jax.mesh.mesh import check_groups, make_mesh
from omnivinci_jax.mesh.rules import RULES, put_batch, replicated
from omnivinci_jax.sequence.assemble import check_capacity
from omnivinci_jax.settings import TrainConfig, to_mapping
from omnivinci_jax.train.checkpoints import Checkpoints
from omnivinci_jax.train.evaluation import Evaluation, accuracy_table, evaluate
from omnivinci_jax.train.metrics import MetricsLog
from omnivinci_jax.train.optimizer import learning_rate, make_optimizer
from omnivinci_jax.train.report import write_report
from omnivinci_jax.train.state import abstract_state, create_state, make_model
from omnivinci_jax.train.step import make_eval_step, make_train_step
from omnivinci_jax.train.termination import Termination

log = logging.getLogger("omnivinci")


@dataclass
class Progress:
    """What a run knows beside its TrainState; saved with every checkpoint.

    step: steps done, which is also the place in the data; nonfinite: updates left out among them.
    best: best validation accuracy so far, -1 before the first.
    """

    step: int = 0
    read: int = 0
    skipped: int = 0
    nonfinite: int = 0
    best: float = -1.0
    seconds: float = 0.0


def train(config: TrainConfig, workdir: Path) -> Evaluation | None:
    """Trains, resuming what `workdir` holds; returns the held-out evaluation of the best model, where there is one.

    Raises:
        UserError: any problem with configuration, data, work directory or disk.
        Preempted: SIGTERM came; the run is saved.
    """
    workdir = workdir.expanduser().absolute()
    check_workdir(workdir, config)
    check_capacity(config.data.capacity, config.model)
    mesh = make_mesh(config.mesh)
    check_groups(config.data.groups, mesh)
    processor = make_processor(config)
    train_index = open_data(config.data.train, processor, config.data)
    val_index = open_data(config.data.val, processor, config.data) if config.data.val else None
    for index in filter(None, (train_index, val_index)):
        for problem in index.problems:
            log.warning("left out: %s", problem)
    claim_workdir(workdir, config)

    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        model = make_model(config)
        optimizer = make_optimizer(config.optimizer, config.steps)
        shapes, shardings = abstract_state(model, optimizer, config.frozen, mesh)
        checkpoints = Checkpoints(workdir / "checkpoints")
        if checkpoints.latest_step is None:
            state, progress = create_state(model, optimizer, config.frozen, config.seed, shardings), Progress()
        else:
            state, saved = checkpoints.restore(shapes, shardings)
            progress = Progress(**saved)
            log.info("resumed at step %d", progress.step)
        run = _Run(config, workdir, processor, model, mesh, checkpoints, progress, val_index)
        run.steps(state, make_train_step(model, optimizer, config.align_weight, shardings), train_index)
        return run.finish()


def check_workdir(workdir: Path, config: TrainConfig) -> None:
    """Raises ConfigError for a folder that holds a run of another configuration, or something else."""
    path = workdir / "config.json"
    if path.exists():
        key = _first_difference(json.loads(path.read_text()), to_mapping(config), "config")
        if key:
            raise ConfigError(
                f"{workdir}: it holds a run of another configuration ({key}); "
                "give another --workdir, or the configuration in its config.json"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f"{workdir}: the folder is not empty and holds no run; give another --workdir")


def claim_workdir(workdir: Path, config: TrainConfig) -> None:
    """Notes the configuration in the work directory."""
    workdir.mkdir(parents=True, exist_ok=True)
    part = workdir / "config.json.part"
    part.write_text(json.dumps(to_mapping(config), indent=2) + "\n")
    part.rename(workdir / "config.json")


def _first_difference(old: object, new: object, key: str) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        differences = (_first_difference(old.get(name), new.get(name), f"{key}.{name}") for name in {**old, **new})
        return next(filter(None, differences), "")
    return "" if old == new else f"{key} is {new}, there it is {old}"


class _Run:
    """The loop's state on the host."""

    def __init__(self, config, workdir, processor, model, mesh, checkpoints, progress, val_index):
        self.config: TrainConfig = config
        self.workdir: Path = workdir
        self.processor: Processor = processor
        self.mesh = mesh
        self.checkpoints: Checkpoints = checkpoints
        self.progress: Progress = progress
        self.val_index: Index | None = val_index
        self.eval_step = make_eval_step(model)
        self.metrics = MetricsLog(workdir, progress.step)
        self.started = time.monotonic() - progress.seconds

    def steps(self, state, train_step, index: Index) -> None:
        """All steps from where the run stands."""
        config, progress = self.config, self.progress
        batches = train_batches(
            index,
            self.processor,
            config.data.capacity,
            groups=config.data.groups,
            seed=config.seed,
            start=progress.step,
            stop=config.steps,
            workers=config.data.workers,
        )
        schedule = learning_rate(config.optimizer, config.steps)
        bar = tqdm(total=config.steps, initial=progress.step, desc="train", unit="step", dynamic_ncols=True)
        last, tokens = time.monotonic(), 0
        pending = None
        with bar, Termination() as termination:
            for batch, samples, skipped in batches:
                self._count(samples, skipped)
                state, metrics = train_step(state, put_batch(batch, self.mesh))
                progress.step += 1
                self._check_finite(pending, index)  # one step late: the device works on while the host looks
                pending = progress.step, samples, metrics["finite"]
                tokens += int(np.sum(batch.segment_ids > 0))
                bar.update()
                step = progress.step
                if step % config.log_every == 0 or step == config.steps:
                    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                    now, steps_done = time.monotonic(), (step - 1) % config.log_every + 1
                    values["learning_rate"] = float(schedule(step - 1))
                    values["step_seconds"] = (now - last) / steps_done
                    values["tokens_per_second"] = tokens / (now - last)
                    last, tokens = now, 0
                    self.metrics.write(step, values)
                    bar.set_postfix_str(
                        f"loss {values['loss']:.3f}, {values['step_seconds']:.2f} s/step, "
                        f"{values['tokens_per_second']:.0f} tokens/s"
                    )
                measured = self.val_index and (step % config.eval_every == 0 or step == config.steps)
                if measured:
                    self._measure(state.params)
                if step % config.checkpoint_every == 0 or step == config.steps or termination.requested:
                    self._check_finite(pending, index)
                    pending = None
                    progress.seconds = time.monotonic() - self.started
                    self.checkpoints.save(step, state, dict(vars(progress)))
                if measured:
                    last, tokens = time.monotonic(), 0
                if termination.requested and step < config.steps:
                    break
        self.checkpoints.wait()
        if progress.step < config.steps:
            self.metrics.close()
            raise Preempted(f"SIGTERM: saved at step {progress.step}; the same command goes on from there")
        if not self.val_index and not (self.workdir / "model").exists():
            self._export(state.params)

    def finish(self) -> Evaluation | None:
        """Measures the best model on the held-out data and writes the report."""
        data = self.config.data
        best = model_dir.load(self.workdir / "model", jnp.dtype(self.config.dtype))
        evaluation = None
        if data.held_out:
            index = open_data(data.held_out, self.processor, data)
            params = jax.device_put(best.params, replicated(self.mesh))
            evaluation = evaluate(self.eval_step, params, index, self.processor, data, self.mesh)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(best.params))
        write_report(self.workdir, evaluation, time.monotonic() - self.started, parameters)
        self.metrics.close()
        if evaluation:
            print(accuracy_table(evaluation))
        print(f"model: {self.workdir / 'model'}\nreport: {self.workdir / 'report.md'}")
        return evaluation

    def _measure(self, params: dict) -> None:
        """Validates and keeps the model if it is the best so far."""
        result = evaluate(self.eval_step, params, self.val_index, self.processor, self.config.data, self.mesh)
        values = {"accuracy": result.overall, "loss": result.loss, **result.by_kind}
        self.metrics.write(self.progress.step, values, "val")
        if result.overall > self.progress.best:
            self.progress.best = result.overall
            self._export(params)

    def _export(self, params: dict) -> None:
        model_dir.save(self.workdir / "model", self.config.model, params, self.processor.tokenizer)

    def _check_finite(self, pending: tuple[int, list, jax.Array] | None, index: Index) -> None:
        """Counts an update that was left out, names its samples, and stops the run when there are too many."""
        if pending is None or pending[2]:
            return
        step, samples, _ = pending
        self.progress.nonfinite += 1
        lines = sorted(int(index.lines[number]) for group in samples for row in group for number in row)
        where = f"step {step}, {index.path} lines {', '.join(map(str, lines))}"
        log.warning("update left out, the loss or a gradient is not finite: %s", where)
        if self.progress.nonfinite > self.config.max_nonfinite:
            raise UserError(
                f"the loss or a gradient is not finite for the {self.progress.nonfinite}th time, more than "
                f"config.max_nonfinite allows; lower config.optimizer.learning_rate or look at {where}"
            )

    def _count(self, samples: list, skipped: list[str]) -> None:
        """Counts what could not be read and stops the run when it is too much."""
        progress = self.progress
        progress.read += sum(len(row) for group in samples for row in group)
        progress.skipped += len(skipped)
        for line in skipped:
            log.warning("skipped: %s", line)
            with open(self.workdir / "skipped.txt", "a") as file:
                file.write(line + "\n")
        seen = progress.read + progress.skipped
        # A share needs some samples to be one: below a hundred, a single bad file would end every run.
        if progress.skipped > self.config.data.max_skipped * max(seen, 100):
            listed = sorted(set((self.workdir / "skipped.txt").read_text().splitlines()))
            raise DataError(
                f"{progress.skipped} of {seen} samples could not be read, more than data.max_skipped = "
                f"{self.config.data.max_skipped:g} allows:\n  " + "\n  ".join(listed[:50])
            )
