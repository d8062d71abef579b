"""The paper's stages at 9B (Section 3, Appendix C). omnivinci_jax/train/stages.py says what trains in each.

The learning rates, batches, clipping and row lengths of the vision stages are those of NVILA, which the paper follows;
a sound stage uses those of the vision stage that trains the corresponding modules. `batch` counts rows, and short
conversations share a row. A stage stops after a number of conversations. The paper gives this number for audio_1 and
audio_2 (C.2.2); for the vision stages it is our choice, because C.4 counts the conversations of the whole corpus, not
of stages. vision_4 and vision_5 read as many conversations as the corpus has about images and about videos. The omni
stage trains on the mixture of configs/mixture.py, spoken prompts included, from the shards in data/, and stops after
the paper's 200 billion tokens, not counting padding.

    omnivinci convert from-torch runs/9b/stage_0 --llm QWEN2.5 --vision_tower SIGLIP --sound_tower AF_WHISPER
    launch/curriculum.sh configs/stages/omnivinci_9b.py runs/9b          # all eight, or one of them:
    omnivinci train --config configs/stages/omnivinci_9b.py:vision_1 --workdir runs/9b/vision_1
"""

from typing import NamedTuple

from configs.mixture import sources
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, OptimizerConfig, TrainConfig, to_config_dict
from omnivinci_jax.train.stages import check_stage, frozen_in, stage_before


class Stage(NamedTuple):
    """Settings of a stage.

    batch: rows per step. group: capacity of a group. conversations, tokens: length of the stage; one of them is 0.
    """

    learning_rate: float
    clip_norm: float | None
    batch: int
    group: Capacity
    conversations: int = 0
    tokens: int = 0


# An image takes up to 17 tiles and 3,072 tokens, a video 128 tiles and 4,096 tokens, a window of sound 375 tokens.
IMAGES = Capacity(rows=4, slots=8192, tiles=96, windows=8, clips=16)
VIDEOS = Capacity(rows=1, slots=16_384, tiles=160, windows=8, clips=8)
SOUNDS = Capacity(rows=4, slots=8192, tiles=8, windows=48, clips=48)
OMNI = Capacity(rows=1, slots=16_384, tiles=160, windows=24, clips=8)

STAGES = {
    "vision_1": Stage(1e-3, None, 512, IMAGES, conversations=600_000),
    "vision_2": Stage(2e-5, 5.0, 1024, IMAGES, conversations=2_000_000),
    "vision_3": Stage(2e-5, None, 1024, IMAGES, conversations=10_000_000),
    "vision_4": Stage(1.5e-5, 5.0, 1024, IMAGES, conversations=8_000_000),
    "vision_5": Stage(2e-5, None, 2048, VIDEOS, conversations=2_700_000),
    "audio_1": Stage(2e-5, 5.0, 1024, SOUNDS, conversations=50_000),
    "audio_2": Stage(1.5e-5, 5.0, 1024, SOUNDS, conversations=9_600_000),
    "omni": Stage(2e-5, None, 2048, OMNI, tokens=200_000_000_000),
}


def get_config(name: str = ""):
    check_stage(name, STAGES)
    stage = STAGES[name]
    return to_config_dict(
        TrainConfig(
            start_from=f"runs/9b/{stage_before(name)}",
            tokenizer="runs/9b/stage_0",
            data=DataConfig(
                train="" if name == "omni" else f"data/{name}.jsonl",
                sources=sources("data") if name == "omni" else (),
                groups=stage.batch // stage.group.rows,
                capacity=stage.group,
                workers=8,
            ),
            optimizer=OptimizerConfig(learning_rate=stage.learning_rate, clip_norm=stage.clip_norm),
            steps=0,
            stop_after_conversations=stage.conversations,
            stop_after_tokens=stage.tokens,
            align_weight=0.1 if name == "omni" else 0.0,
            frozen=frozen_in(name),
        )
    )
