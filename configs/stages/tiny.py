"""The paper's stages at the tiny size: the demo's settings with learning rates and lengths for each stage.

omnivinci_jax/train/stages.py says what trains in each. Stage 0 stands for the pretrained language model and image
encoder that the paper starts from: it trains both on text and questions about images, with a random, frozen projector.

    omnivinci av_world curriculum --out runs/curriculum
    launch/curriculum.sh configs/stages/tiny.py runs/stages          # all nine, or one of them:
    omnivinci train --config configs/stages/tiny.py:vision_1 --workdir runs/stages/vision_1
"""

import dataclasses
from typing import NamedTuple

from configs import tiny
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import Source, TrainConfig, from_mapping, to_config_dict
from omnivinci_jax.train.stages import check_stage, frozen_in, stage_before


class Stage(NamedTuple):
    """Settings of a stage.

    data: names and weights of its files; the validation questions of the first file select its best model.
    group: capacity of a group.
    """

    data: dict[str, float]
    learning_rate: float
    steps: int
    group: Capacity


IMAGES = Capacity(rows=4, slots=304, tiles=128, windows=1, clips=32)
VIDEOS = Capacity(rows=4, slots=304, tiles=128, windows=1, clips=14)
SOUNDS = Capacity(rows=4, slots=304, tiles=1, windows=32, clips=32)
OMNI = Capacity(rows=4, slots=304, tiles=128, windows=14, clips=14)

# Every stage that trains the language model includes text; otherwise it forgets what it can do without media.
STAGES = {
    "stage_0": Stage({"images": 1, "text": 3}, 5e-3, 1500, IMAGES),
    "vision_1": Stage({"images": 1}, 5e-3, 150, IMAGES),
    "vision_2": Stage({"images": 1}, 2e-3, 150, IMAGES),
    "vision_3": Stage({"images": 1, "text": 1}, 2e-3, 150, IMAGES),
    "vision_4": Stage({"images": 1, "text": 1}, 2e-3, 300, IMAGES),
    "vision_5": Stage({"videos": 2, "text": 1}, 5e-3, 1200, VIDEOS),
    "audio_1": Stage({"sounds": 1}, 5e-3, 300, SOUNDS),
    "audio_2": Stage({"sounds": 2, "text": 1}, 5e-3, 750, SOUNDS),
    "omni": Stage({"omni": 1}, 5e-3, 1800, OMNI),
}
MODALITIES = {"text": "text", "images": "image", "videos": "video", "sounds": "sound", "omni": "omni"}


def get_config(name: str = ""):
    check_stage(name, STAGES)
    stage, demo = STAGES[name], from_mapping(TrainConfig, tiny.get_config())
    data = dataclasses.replace(
        demo.data,
        train="",
        sources=tuple(
            Source(file, f"runs/curriculum/{file}.jsonl", MODALITIES[file], weight)
            for file, weight in stage.data.items()
        ),
        val=f"runs/curriculum/{next(iter(stage.data))}_val.jsonl",
        held_out="",
        capacity=stage.group,
    )
    return to_config_dict(
        dataclasses.replace(
            demo,
            start_from="" if name == "stage_0" else f"runs/stages/{stage_before(name)}",
            data=data,
            optimizer=dataclasses.replace(demo.optimizer, learning_rate=stage.learning_rate),
            steps=stage.steps,
            align_weight=demo.align_weight if name == "omni" else 0.0,
            frozen=frozen_in(name),
            eval_every=150,
            checkpoint_every=150,
        )
    )
