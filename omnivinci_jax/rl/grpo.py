"""A GRPO run (Section 4.3), which writes checkpoints, metrics, the best model and a report to a work directory."""

import logging
import math
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from omnivinci_jax.data.index import Index
from omnivinci_jax.data.setup import make_processor
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.scheduler import capacity_for
from omnivinci_jax.mesh.mesh import make_mesh
from omnivinci_jax.mesh.rules import check_batch
from omnivinci_jax.models.lora import without_adapters
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.paths import absolute
from omnivinci_jax.rl.answer_batches import AnswerBatches, Scores
from omnivinci_jax.rl.evaluate import RewardScore, evaluate
from omnivinci_jax.rl.loss import AnswerBatch, GRPOLoss, score_tokens
from omnivinci_jax.rl.prompts import open_prompt_file, open_prompts
from omnivinci_jax.rl.rewards import Rewards
from omnivinci_jax.sequence.assemble import check_capacity
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.best_model import BestModel
from omnivinci_jax.train.hooks import Evaluate, Log, NonfiniteGuard, Save
from omnivinci_jax.train.metrics import Meter
from omnivinci_jax.train.optimizer import learning_rate, make_optimizer
from omnivinci_jax.train.profile import Profile
from omnivinci_jax.train.samples import DataProgress
from omnivinci_jax.train.session import open_session
from omnivinci_jax.train.start import find_start
from omnivinci_jax.train.state import (
    TrainState,
    abstract_state,
    create_frozen,
    create_reference,
    create_state,
    make_model,
    merge,
)
from omnivinci_jax.train.step import Metrics, join_groups, make_train_step, split_groups
from omnivinci_jax.train.supervised import MakeFlopRates, check_progress, work_rates
from omnivinci_jax.train.termination import Termination
from omnivinci_jax.train.trainer import Hook, Trainer
from omnivinci_jax.train.untrained import initially_untrained
from omnivinci_jax.train.workdir import check_workdir

log = logging.getLogger("omnivinci")


def train(
    config: TrainConfig,
    workdir: epath.Path,
    *,
    make_flop_rates: MakeFlopRates,
    profile_steps: range = range(0),
) -> RewardScore | None:
    """Trains by GRPO, resuming any run in `workdir`; returns the held-out rewards of the best model.

    A step samples answers and makes `config.grpo.updates` updates with them, so every checkpoint lies between two
    rollouts, and a resumed run samples the same answers again.

    Args:
        config: of the run.
        workdir: of the run.
        make_flop_rates: see train/supervised.py.
        profile_steps: steps to trace to workdir/profile, for XProf.

    Raises:
        UserError: any problem with configuration, data, work directory, disk or a reward.
        Preempted: SIGTERM arrived and the run is saved.
    """
    if jax.process_count() > 1:
        raise ConfigError("config.objective is grpo: such a run has one process; start it without --distributed")
    if not config.start_from:
        raise ConfigError("config.start_from is empty: GRPO needs a trained model; write --config FILE:MODEL")
    workdir, grpo = absolute(workdir), config.grpo
    check_workdir(workdir, config)
    check_capacity(config.data.capacity, config.model)
    mesh = make_mesh(config.mesh)
    check_batch(config.data, config.microbatches, mesh)
    model = make_model(config, mesh.devices.flat[0].platform)
    start = find_start(config, model)
    processor = make_processor(config)
    prompts = open_prompts(processor, config)
    val, held_out = (
        open_prompt_file(path, processor, config) if path else None for path in (config.data.val, config.data.held_out)
    )
    for index in filter(None, (prompts, val, held_out)):
        for problem in index.problems:
            log.warning("skipped: %s", problem)

    updates = config.steps * grpo.updates
    optimizer = make_optimizer(config.optimizer, updates, config.model)
    shapes, shardings = abstract_state(model, optimizer, config, mesh, start)
    loss_fn = GRPOLoss(model, grpo.epsilon, grpo.beta, grpo.temperature)
    update = make_train_step(loss_fn, optimizer, shardings, microbatches=config.microbatches)
    best = BestModel(workdir, config, processor.tokenizer, initially_untrained(config, start))

    with open_session(workdir, config, mesh) as session, Rewards(grpo) as rewards:
        arguments = model, optimizer, config, shardings, start
        state, saved = session.checkpoints.restore_or_create(
            shapes, shardings, partial(create_state, *arguments), partial(create_frozen, *arguments)
        )
        progress = DataProgress(**(saved or {"data": prompts.digest, "best": -math.inf}))
        check_progress(progress, prompts, workdir)
        if saved:
            log.info("resumed at step %d", progress.step)

        rows, capacity = rollout_shape(config)
        engine = Engine(model, state.params, processor, mesh, rows=rows, capacity=capacity)
        reference = partial(create_reference, *arguments)
        scores = make_scores(model, config, reference)
        batches = AnswerBatches(config, prompts, engine, rewards, scores, progress, session.folder, mesh)
        meter = Meter(batches.work, work_rates(config.model, make_flop_rates(mesh)))
        metrics_log = session.open_metrics(progress.step)
        schedule = learning_rate(config.optimizer, updates)

        def score(params: dict, index: Index) -> RewardScore:
            return evaluate(engine, params, index, rewards, grpo.max_new_tokens, grpo.prompts)

        if held_out and metrics_log and not progress.step:
            metrics_log.write(0, score(state.params, held_out).metrics, "held_out")

        def save_now(trainer: Trainer) -> None:
            save.save(trainer)
            session.checkpoints.wait()

        save = Save(session.checkpoints, meter, every=config.checkpoint_every, prepare=session.prepare_save)
        hooks: list[Hook] = [
            Profile(session.folder / "profile", profile_steps),
            batches,
            NonfiniteGuard(progress, config.max_nonfinite, batches.where),
            meter,
            Log(
                metrics_log,
                lambda step: schedule(step * grpo.updates),
                every=config.log_every,
                steps=range(progress.step, config.steps),
                values=(meter.rates, batches.values),
            ),
        ]
        if val:
            hooks.append(Evaluate(partial(score, index=val), best.keep, metrics_log, meter, every=config.eval_every))
        hooks += [Termination(), save]
        trainer = Trainer(state, repeated(update, grpo.updates), progress, hooks)
        del state  # the trainer owns its buffers
        with closing(batches.batches(trainer, save_now)) as items:
            trainer.run(items, lambda trainer: progress.step >= config.steps)
        session.check_finished(trainer)
        if not val:
            best.keep(trainer.state)

        params = merge(trainer.state.frozen, best.load(shardings.trainable))
        found = score(params, held_out) if held_out else None
        parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        from omnivinci_jax.rl.report import write_report  # here, because Matplotlib takes a second to import

        write_report(session.folder, found, trainer.seconds, parameters)
        print(f"{best.folder.name}: {best.folder}\nreport: {workdir / 'report.md'}")
        return found


def rollout_shape(config: TrainConfig) -> tuple[int, int]:
    """Returns the engine's rows, and the slots of each."""
    grpo = config.grpo
    return min(grpo.rows, grpo.prompts * grpo.answers), capacity_for(config.data.capacity.slots)


def make_scores(model: OmniVinci, config: TrainConfig, create_reference: Callable[[], dict]) -> Scores:
    """Returns the log-probabilities that the loss needs beside those of the policy that it trains.

    The reference is the base model under LoRA, and otherwise a copy of the parameters that train, as they were at the
    start of the run.
    """

    @jax.jit
    def logprobs(params: dict, rows: Batch) -> jax.Array:
        parts = jax.tree.map(partial(split_groups, count=config.microbatches), rows)
        scored = jax.lax.map(lambda part: score_tokens(model, params, part, config.grpo.temperature).logprobs, parts)
        return join_groups(scored)

    def policy(state: TrainState, rows: Batch) -> jax.Array:
        return logprobs(state.params, rows)

    def base(state: TrainState, rows: Batch) -> jax.Array:
        return logprobs(without_adapters(state.params), rows)

    def earlier(trainable: dict, state: TrainState, rows: Batch) -> jax.Array:
        return logprobs(merge(trainable, state.frozen), rows)

    reference = None
    if config.grpo.beta:
        reference = base if config.lora.rank else partial(earlier, create_reference())
    return Scores(policy if config.grpo.updates > 1 else None, reference)


def repeated(
    update: Callable[[TrainState, AnswerBatch], tuple[TrainState, Metrics]], updates: int
) -> Callable[[TrainState, AnswerBatch], tuple[TrainState, Metrics]]:
    """Returns a step of several updates with one batch.

    Its metrics are means over the updates, except `sampler_difference`, which is that of the first, whose policy
    sampled the answers, `finite`, which all must be, and `tokens`, which add up.
    """
    if updates == 1:
        return update

    def step(state: TrainState, batch: AnswerBatch) -> tuple[TrainState, Metrics]:
        all_metrics: list[Metrics] = []
        for _ in range(updates):
            state, metrics = update(state, batch)
            all_metrics.append(metrics)
        stacked: Any = jax.tree.map(lambda *values: jnp.stack(values), *all_metrics)
        means = {name: values.mean(axis=0) for name, values in stacked.items()}
        exact = {
            "sampler_difference": stacked["sampler_difference"][0],
            "finite": stacked["finite"].all(),
            "tokens": stacked["tokens"].sum(),
        }
        return state, means | exact

    return step
