"""What the ablations share: the tiny model on clips whose frames are spread evenly, so that a place is not a time.

    python -m omnivinci_jax.data.av_world.ablations runs/ablation_data

The demo samples two frames a second; here 16 frames are spread over 6.5 to 12 seconds, and only what knows the time can
tell which frame goes with which sound.
"""

from configs.tiny import TOKENIZER, model_config
from omnivinci_jax.config import TimeEmbeddingConfig
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, OptimizerConfig, Source, TrainConfig

# The horizon is the longest clip, for every scheme that has one.
CRTE = TimeEmbeddingConfig(scheme="crte", max_time=12.0, trope_dim=64)


def baseline() -> TrainConfig:
    """Temporal Embedding Grouping with CRTE, max-pooled sound tokens, questions and omni captions."""
    data = DataConfig(
        sources=(
            Source("questions", "runs/ablation_data/questions.jsonl", "video"),
            Source("captions", "runs/ablation_data/captions.jsonl", "omni"),
        ),
        val="runs/ablation_data/val.jsonl",
        held_out="runs/ablation_data/held_out.jsonl",
        groups=3,
        capacity=Capacity(rows=4, slots=304, tiles=112, windows=14, clips=14),
        workers=1,
        cache="runs/ablation_data/cache",
        cache_media=True,
    )
    return TrainConfig(
        model=model_config().replace(num_video_frames=16, video_time=CRTE, sound_time=CRTE),
        tokenizer=str(TOKENIZER),
        data=data,
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3),
        steps=1500,
        dtype="float32",
        tower_remat="dots",
        decoder_remat="dots",
        eval_every=150,
        checkpoint_every=300,
    )
