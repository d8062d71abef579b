"""Supervised training, which writes checkpoints, metrics, the best model and a report to a work directory."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
from etils import epath
from jax.sharding import Mesh

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.index import Index
from omnivinci_jax.data.loader import Loaded, Plan, read_batches
from omnivinci_jax.data.mixture import Mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.setup import make_processor, open_data, open_mixture
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.mesh.mesh import make_mesh
from omnivinci_jax.mesh.processes import check_same, is_main
from omnivinci_jax.mesh.rules import check_batch, local_groups, put_batch
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.paths import absolute
from omnivinci_jax.sequence.assemble import check_capacity
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.best_model import BestModel
from omnivinci_jax.train.hooks import Evaluate, Log, NonfiniteGuard, Save, Score
from omnivinci_jax.train.length import Length
from omnivinci_jax.train.metrics import Meter, Work
from omnivinci_jax.train.optimizer import learning_rate, make_optimizer
from omnivinci_jax.train.profile import Profile
from omnivinci_jax.train.samples import DataProgress, Samples
from omnivinci_jax.train.session import open_session, skipped_name
from omnivinci_jax.train.start import find_start
from omnivinci_jax.train.state import abstract_state, create_frozen, create_state, make_model, merge
from omnivinci_jax.train.step import make_train_step
from omnivinci_jax.train.supervised_loss import SupervisedLoss
from omnivinci_jax.train.termination import Termination
from omnivinci_jax.train.trainer import Hook, Trainer
from omnivinci_jax.train.untrained import initially_untrained
from omnivinci_jax.train.workdir import check_workdir

log = logging.getLogger("omnivinci")

ScoreT = TypeVar("ScoreT", bound=Score)
# Maps (model, mesh, processor) to a function that evaluates parameters on a data set.
MakeEvaluate = Callable[[OmniVinci, Mesh, Processor], Callable[[dict, Index], ScoreT]]
# Maps a mesh to a function from the work per second to metrics.
MakeFlopRates = Callable[[Mesh], Callable[[Work], dict[str, float]]]
# Writes the report of a run to a folder, given its held-out score, if any, its seconds and its number of parameters.
WriteReport = Callable[[Path, ScoreT | None, float, int], None]


class Data(NamedTuple):
    """The data of a run: the training mixture, and the validation and held-out data, if any."""

    processor: Processor
    mixture: Mixture
    val: Index | None
    held_out: Index | None


def train(
    config: TrainConfig,
    workdir: epath.Path,
    *,
    make_evaluate: MakeEvaluate[ScoreT],
    make_flop_rates: MakeFlopRates,
    write_report: WriteReport[ScoreT],
    profile_steps: range = range(0),
) -> ScoreT | None:
    """Trains, resuming any run in `workdir`; returns the held-out score of the best model, if there is held-out data.

    `omnivinci_jax.run.train` passes the callables, which need packages above this one.

    Args:
        profile_steps: steps to trace to workdir/profile, for XProf.

    Raises:
        UserError: any problem with configuration, data, work directory or disk.
        Preempted: SIGTERM arrived and the run is saved, or another process was lost.
    """
    workdir = absolute(workdir)
    check_workdir(workdir, config)
    check_capacity(config.data.capacity, config.model)
    mesh = make_mesh(config.mesh)
    check_batch(config.data, config.microbatches, mesh)
    model = make_model(config, mesh.devices.flat[0].platform)
    start = find_start(config, model)
    # Shapes do not depend on the length of the run, which may be known only once the data is open.
    shapes, shardings = abstract_state(model, make_optimizer(config.optimizer, 1, config.model), config, mesh, start)
    data = open_run_data(config)

    length = Length(config.steps, config.stop_after_conversations, config.stop_after_tokens)
    make_plan = partial(Plan, data.mixture, config.data.capacity, config.seed)
    steps = length.expected_steps(make_plan(), data.mixture.sizes, config.data.groups)
    optimizer = make_optimizer(config.optimizer, steps, config.model)
    loss_fn = SupervisedLoss(model, config.align_weight, len(data.mixture.sources))
    train_step = make_train_step(loss_fn, optimizer, shardings, microbatches=config.microbatches)
    evaluate = make_evaluate(model, mesh, data.processor)
    best = BestModel(workdir, config, data.processor.tokenizer, initially_untrained(config, start))

    with open_session(workdir, config, mesh) as session:
        new_state = partial(create_state, model, optimizer, config, shardings, start)
        new_frozen = partial(create_frozen, model, optimizer, config, shardings, start)
        state, saved = session.checkpoints.restore_or_create(shapes, shardings, new_state, new_frozen)
        progress = DataProgress(**(saved or {"data": data.mixture.digest}))
        check_progress(progress, data.mixture, workdir)
        if saved:
            log.info("resumed at step %d", progress.step)

        plan = make_plan((progress.block[0], progress.block[1]))
        samples = Samples(data.mixture, plan, progress, config.data, session.folder / skipped_name())
        meter = Meter(samples.work, work_rates(config.model, make_flop_rates(mesh)))
        metrics_log = session.open_metrics(progress.step)
        hooks: list[Hook] = [
            Profile(session.folder / "profile", profile_steps),
            samples,
            NonfiniteGuard(progress, config.max_nonfinite, samples.where),
            meter,
            Log(
                metrics_log,
                learning_rate(config.optimizer, steps),
                every=config.log_every,
                steps=range(progress.step, steps),
                values=(meter.rates, samples.source_metrics),
            ),
        ]
        if val := data.val:

            def validate(params: dict) -> Score:
                return evaluate(params, val)

            hooks.append(Evaluate(validate, best.keep, metrics_log, meter, every=config.eval_every))
        hooks += [
            Termination(),
            Save(session.checkpoints, meter, every=config.checkpoint_every, prepare=session.prepare_save),
        ]
        trainer = Trainer(state, train_step, progress, hooks)
        del state  # the trainer owns its buffers
        own = local_groups(config.data.groups, mesh)
        loaded = read_batches(
            data.mixture, plan, data.processor, config.data, own, start=progress.step, stop=config.steps or None
        )
        with closing(loaded):
            batches = put_batches(meter.waited(loaded), samples, config.data.groups, mesh)
            trainer.run(batches, partial(length.is_done, samples=samples))
        session.check_finished(trainer)
        if not data.val:
            best.keep(trainer.state)

        frozen = trainer.state.frozen
        del trainer.state  # frees memory for the best parameters
        params = merge(frozen, best.load(shardings.trainable))
        score = evaluate(params, data.held_out) if data.held_out else None
        if is_main():
            parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
            write_report(session.folder, score, trainer.seconds, parameters)
            print(f"{best.folder.name}: {best.folder}\nreport: {workdir / 'report.md'}")
        return score


def open_run_data(config: TrainConfig) -> Data:
    """Opens all data of a run, including the held-out data, so that mistakes show before training."""
    processor = make_processor(config)
    mixture = open_mixture(processor, config.data)
    check_same("the training data", mixture.digest)
    val, held_out = (
        open_data(path, processor, config.data) if path else None for path in (config.data.val, config.data.held_out)
    )
    for index in filter(None, (mixture, val, held_out)):
        for problem in index.problems:
            log.warning("skipped: %s", problem)
    return Data(processor, mixture, val, held_out)


def check_progress(progress: DataProgress, mixture: Mixture, workdir: epath.Path) -> None:
    """Raises ConfigError if the training data is not the data that the run began with."""
    if progress.data != mixture.digest:
        raise ConfigError(
            f"{workdir}: the training data has changed since the run began, so the order of samples differs; "
            "restore the original data, or start another run from this run's model (config.start_from)"
        )


def put_batches(loaded: Iterable[Loaded], samples: Samples, groups: int, mesh: Mesh) -> Iterator[Batch]:
    """Puts loaded batches on the mesh, and lists the samples that could not be read."""
    for batch, skipped in loaded:
        samples.list_skipped(skipped)
        yield put_batch(batch, groups, mesh)


def work_rates(
    model: OmniVinciConfig, flop_rates: Callable[[Work], dict[str, float]]
) -> Callable[[Work], dict[str, float]]:
    """Returns a function from the work per second to metrics.

    Tokens are text, vision and audio slots; a video frame is one tile; sound is measured in seconds of its windows.
    """
    window_seconds = model.window_samples / model.sampling_rate

    def rates(work: Work) -> dict[str, float]:
        return {
            "tokens_per_second": work.slots,
            "tiles_per_second": work.tiles,
            "audio_seconds_per_second": work.windows * window_seconds,
            **flop_rates(work),
        }

    return rates
