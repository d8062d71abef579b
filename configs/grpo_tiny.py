"""GRPO on a CPU, from a tiny model that knows the format; see docs/grpo.md.

omnivinci train --config configs/grpo_tiny.py:MODEL --workdir runs/grpo --config.data.train=FILE

MODEL is a model directory or a work directory. A line of FILE is a conversation with its "answer" beside the messages.
"""

from configs.finetune import get_config as finetune
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, GRPOConfig, OptimizerConfig, to_config_dict


def get_config(start: str = ""):
    values = finetune(start)
    values.objective = "grpo"
    values.grpo = to_config_dict(GRPOConfig(prompts=16, answers=8, max_new_tokens=48))
    # Each of 4 groups holds 4 prompts with 8 answers.
    capacity = Capacity(rows=32, slots=320, tiles=160, windows=16, clips=8)
    values.data = to_config_dict(DataConfig(groups=4, capacity=capacity, workers=1, cache_media=True))
    values.optimizer = to_config_dict(OptimizerConfig(learning_rate=1e-4, weight_decay=0.0))
    values.steps, values.dtype = 200, "float32"
    values.eval_every = values.checkpoint_every = 20
    values.log_every = 1
    return values
