"""The paper's stages at the tiny size, with rates of their own. What trains in each: omnivinci_jax/train/stages.py.

Stage 0 gives them the language model and image encoder that the paper starts from: it trains both on text and
questions about images, through a projector that stays as it was drawn.

    python -m omnivinci_jax.data.av_world.curriculum runs/curriculum
    launch/curriculum.sh configs/stages/tiny.py runs/stages          # all nine, or one of them:
    omnivinci train --config configs/stages/tiny.py:vision_1 --workdir runs/stages/vision_1
"""

from typing import NamedTuple

from configs.tiny import TOKENIZER, model_config
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, OptimizerConfig, TrainConfig, to_config_dict
from omnivinci_jax.train.stages import check_stage, frozen_in, stage_before


class Stage(NamedTuple):
    """The numbers of a stage; `data` is the name of its file, `group` what one group of its batch holds."""

    data: str
    learning_rate: float
    steps: int
    group: Capacity


IMAGES = Capacity(rows=4, slots=304, tiles=128, windows=1, clips=32)
VIDEOS = Capacity(rows=4, slots=304, tiles=128, windows=1, clips=14)
SOUNDS = Capacity(rows=4, slots=304, tiles=1, windows=32, clips=32)
OMNI = Capacity(rows=4, slots=304, tiles=128, windows=14, clips=14)

STAGES = {
    "stage_0": Stage("images", 5e-3, 600, IMAGES),
    "vision_1": Stage("images", 5e-3, 150, IMAGES),
    "vision_2": Stage("images", 2e-3, 150, IMAGES),
    "vision_3": Stage("images", 2e-3, 150, IMAGES),
    "vision_4": Stage("images", 2e-3, 300, IMAGES),
    "vision_5": Stage("videos", 5e-3, 1200, VIDEOS),
    "audio_1": Stage("sounds", 5e-3, 300, SOUNDS),
    "audio_2": Stage("sounds", 5e-3, 750, SOUNDS),
    "omni": Stage("omni", 5e-3, 1800, OMNI),
}


def get_config(name: str = ""):
    check_stage(name, STAGES)
    stage = STAGES[name]
    data = DataConfig(
        train=f"runs/curriculum/{stage.data}.jsonl",
        val=f"runs/curriculum/{stage.data}_val.jsonl",
        groups=3,
        capacity=stage.group,
        workers=1,
        cache_media=True,
    )
    return to_config_dict(
        TrainConfig(
            model=model_config(),
            start_from="" if name == "stage_0" else f"runs/stages/{stage_before(name)}",
            tokenizer=str(TOKENIZER),
            data=data,
            optimizer=OptimizerConfig(name="muon", learning_rate=stage.learning_rate),
            steps=stage.steps,
            align_weight=0.01 if name == "omni" else 0.0,
            frozen=frozen_in(name),
            dtype="float32",
            tower_remat="dots",
            decoder_remat="dots",
            eval_every=150,
            checkpoint_every=150,
        )
    )
