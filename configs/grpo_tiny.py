"""GRPO on a CPU, from a tiny model that knows the format; see docs/grpo.md.

omnivinci train --config configs/grpo_tiny.py:MODEL --workdir runs/grpo

MODEL is a model directory or a work directory. `make demo-grpo` makes the data and the model, and then runs this.
"""

from configs.finetune import get_config as finetune
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, GRPOConfig, OptimizerConfig, to_config_dict


def get_config(start: str = ""):
    values = finetune(start)
    values.objective = "grpo"
    values.grpo = to_config_dict(GRPOConfig(prompts=16, answers=8, max_new_tokens=40))
    # Each of 4 groups holds 4 prompts with 8 answers.
    capacity = Capacity(rows=32, slots=200, tiles=96, windows=8, clips=4)
    data = DataConfig(
        train="runs/reasoning/train.jsonl",
        val="runs/reasoning/val.jsonl",
        held_out="runs/reasoning/held_out.jsonl",
        groups=4,
        capacity=capacity,
        workers=1,
        cache_media=True,
    )
    values.data = to_config_dict(data)
    values.optimizer = to_config_dict(OptimizerConfig(learning_rate=2e-4))
    values.steps, values.dtype = 40, "float32"
    values.eval_every = values.checkpoint_every = 10
    values.log_every = 1
    return values
