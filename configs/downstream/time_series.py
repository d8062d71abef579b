"""Time series as line plots, with a tiny model on a CPU; see docs/downstream.md.

omnivinci train --config configs/downstream/time_series.py --workdir runs/italy
"""

from configs.tiny import TOKENIZER, model_config
from omnivinci_jax.config import OmniVinciConfig, Qwen2Config, SiglipConfig
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, OptimizerConfig, TrainConfig, to_config_dict


def picture_model() -> OmniVinciConfig:
    """Returns a tiny model with one tile of 84 pixels a picture, so that its tower sees a plot whole."""
    text = Qwen2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    vision = SiglipConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=84,
        patch_size=14,
    )
    return model_config().replace(text=text, vision=vision, s2_scales=(84,), max_tiles=1)


def picture_settings(folder: str, steps: int) -> TrainConfig:
    """Returns the settings for questions about pictures in a folder of `omnivinci convert-data`."""
    return TrainConfig(
        model=picture_model(),
        tokenizer=str(TOKENIZER),
        data=DataConfig(
            train=f"{folder}/train.jsonl",
            held_out=f"{folder}/test.jsonl",
            groups=1,
            capacity=Capacity(rows=4, slots=656, tiles=32, windows=1, clips=32),
            workers=1,
            cache_media=True,
        ),
        optimizer=OptimizerConfig(name="muon", learning_rate=3e-3),
        frozen=(*TrainConfig().frozen, "sound_tower/.*", "sound_mm_projector/.*", "omni_align/.*"),
        steps=steps,
        dtype="float32",
        tower_remat="none",
        decoder_remat="none",
        eval_every=steps,
        checkpoint_every=steps,
    )


def get_config():
    return to_config_dict(picture_settings("runs/italy_plots", steps=200))
