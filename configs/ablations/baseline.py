"""What the ablations share: the tiny model on clips whose frames are spread evenly, so that a place is not a time.

    omnivinci av_world ablations --out runs/ablation_data/paired --paired
    omnivinci av_world ablations --out runs/ablation_data/independent
    omnivinci av_world curriculum --out runs/curriculum
    omnivinci train --config configs/stages/tiny.py:stage_0 --workdir runs/stages/stage_0

As in the paper, every arm starts from a language model and an image encoder, which have met neither sound nor time.
The demo samples two frames a second; here 16 frames are spread over 6.5 to 12 seconds, and only what knows the time can
tell which frame goes with which sound.
"""

import dataclasses
from typing import Literal

from configs import tiny
from omnivinci_jax.config import TimeEmbeddingConfig
from omnivinci_jax.settings import Source, TrainConfig, from_mapping

# The horizon of every scheme that has one: on validation clips better than that of the longest clip, 12 s (crte.py).
CRTE = TimeEmbeddingConfig(scheme="crte", max_time=60.0, trope_dim=64)


def baseline(clips: Literal["paired", "independent"]) -> TrainConfig:
    """Temporal Embedding Grouping with CRTE, max-pooled sound tokens, questions and omni captions; else the demo's.

    clips: paired, where streams are to be aligned; independent, where it counts what only one of them tells.
    """
    demo, folder = from_mapping(TrainConfig, tiny.get_config()), f"runs/ablation_data/{clips}"
    data = dataclasses.replace(
        demo.data,
        train="",
        sources=(
            Source("questions", f"{folder}/questions.jsonl", "video"),
            Source("captions", f"{folder}/captions.jsonl", "omni"),
        ),
        val=f"{folder}/val.jsonl",
        held_out=f"{folder}/held_out.jsonl",
        capacity=demo.data.capacity._replace(tiles=112),
        cache="runs/ablation_data/cache",
    )
    model = demo.model.replace(num_video_frames=16, video_time=CRTE, sound_time=CRTE)
    return dataclasses.replace(
        demo,
        model=model,
        start_from="runs/stages/stage_0",
        start_modules=("llm", "vision_tower"),
        data=data,
        steps=600,
        align_weight=0.0,
        eval_every=60,
    )
