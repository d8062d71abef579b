"""GRPO of the published 9B model with the settings of Section 4.3; see docs/grpo.md.

omnivinci train --config configs/grpo_9b.py:MODEL --workdir runs/grpo_9b --config.data.train=FILE
omnivinci plan --config configs/grpo_9b.py --topology v5p:4x4x4

From the paper: up to 64 frames, 1,024 text tokens of prompt and 2,048 of answer, 64 prompts a step with 8 answers each,
temperature 1.0, top-p 0.99, 18,000 questions (read once: 281 steps). Not in the paper: epsilon 0.2 (PPO), beta 0.04 and
the learning rate 1e-6 (both DeepSeekMath), and the instruction. Sound is read up to ten minutes.
"""

from configs.finetune import finetune
from configs.finetune import get_config as finetune_from
from configs.omnivinci_9b import model_config
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, GRPOConfig, OptimizerConfig, to_config_dict

FRAMES, WINDOWS, PROMPT_TEXT, ANSWER = 64, 20, 1024, 2048
INSTRUCTION = (
    "First think about the question between <think> and </think>, then give the letter of the right option between "
    "<answer> and </answer>."
)


def get_config(start: str = ""):
    # `omnivinci plan` needs only the shapes of the published model.
    values = finetune_from(start) if start else to_config_dict(finetune(model_config()))
    values.objective = "grpo"
    values.model.num_video_frames = FRAMES
    values.grpo = to_config_dict(
        GRPOConfig(
            prompts=64,
            answers=8,
            epsilon=0.2,
            beta=0.04,
            temperature=1.0,
            top_p=0.99,
            max_new_tokens=ANSWER,
            rows=256,
            instruction=INSTRUCTION,
        )
    )
    # A group holds a prompt with half of its answers: 8 pools of 256 tokens for the frames, and 375 tokens a window.
    # With 64 chips, a microbatch is one group a chip; on 8 chips that takes --config.microbatches=16.
    slots = PROMPT_TEXT + FRAMES // 8 * 256 + WINDOWS * 375 + ANSWER
    capacity = Capacity(rows=4, slots=-(-slots // 1024) * 1024, tiles=FRAMES, windows=WINDOWS, clips=8)
    values.data = to_config_dict(DataConfig(groups=128, capacity=capacity, workers=8))
    values.optimizer = to_config_dict(OptimizerConfig(learning_rate=1e-6))
    values.microbatches = 2
    values.steps, values.eval_every, values.checkpoint_every, values.log_every = 281, 50, 50, 1
    return values
