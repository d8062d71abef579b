"""`omnivinci train`: supervised training or GRPO, with evaluation, a report and a FLOP counter."""

from functools import partial
from pathlib import Path

from etils import epath
from jax.sharding import Mesh

from omnivinci_jax.data.index import Index
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.evaluation.accuracy import Evaluation, accuracy_table, evaluate
from omnivinci_jax.evaluation.scoring import make_eval_step
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.planning.flops import make_flop_rates
from omnivinci_jax.rl import grpo
from omnivinci_jax.rl.evaluate import RewardScore
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train import supervised


def train(config: TrainConfig, workdir: epath.Path, profile_steps: range = range(0)) -> Evaluation | RewardScore | None:
    """Trains as configured; see train/supervised.py and rl/grpo.py."""
    if config.objective == "grpo":
        flop_rates = partial(make_flop_rates, config)
        return grpo.train(config, workdir, make_flop_rates=flop_rates, profile_steps=profile_steps)

    def make_evaluate(model: OmniVinci, mesh: Mesh, processor: Processor):
        eval_step = make_eval_step(model, mesh, align=config.align_weight > 0)

        def evaluate_params(params: dict, index: Index) -> Evaluation:
            return evaluate(eval_step, params, index, processor, config.data, mesh)

        return evaluate_params

    def report(folder: Path, evaluation: Evaluation | None, seconds: float, parameters: int) -> None:
        from omnivinci_jax.evaluation.report import write_report  # here, because Matplotlib takes a second to import

        write_report(folder, evaluation, seconds, parameters)
        if evaluation:
            print(accuracy_table(evaluation))

    return supervised.train(
        config,
        workdir,
        make_evaluate=make_evaluate,
        make_flop_rates=partial(make_flop_rates, config),
        write_report=report,
        profile_steps=profile_steps,
    )
