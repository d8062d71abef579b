"""The demo: the whole architecture at a tiny size, trained on the generated data set on a CPU in minutes.

omnivinci train --config configs/tiny.py --workdir runs/tiny
"""

from pathlib import Path

from omnivinci_jax.config import (
    AFWhisperConfig,
    OmniAlignConfig,
    OmniVinciConfig,
    Qwen2Config,
    SiglipConfig,
    TimeEmbeddingConfig,
)
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, OptimizerConfig, TrainConfig, to_config_dict

TOKENIZER = Path(__file__).parent / "tiny_tokenizer"


def model_config() -> OmniVinciConfig:
    """Returns the model of 1.5 million parameters."""
    # 32 of 128 channels rotate, with periods of 6 to 30 s.
    time = TimeEmbeddingConfig(scheme="crte", max_time=6.0, trope_dim=64)
    return OmniVinciConfig(
        text=Qwen2Config(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_theta=1_000_000.0,
            max_position_embeddings=4096,
        ),
        vision=SiglipConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
        ),
        audio=AFWhisperConfig(
            d_model=64,
            encoder_ffn_dim=128,
            encoder_layers=2,
            encoder_attention_heads=4,
            num_mel_bins=128,
            max_source_positions=120,
        ),
        s2_scales=(28, 56, 84),
        pool_sizes=((1, 1, 1),),
        num_video_frames=32,
        fps=2.0,
        audio_hop_length=400,
        max_sound_seconds=60.0,
        temporal_group_seconds=1.0,
        video_time=time,
        sound_time=time,
        omni_align=OmniAlignConfig(num_heads=4),
    )


def get_config():
    data = DataConfig(
        train="runs/av_world/train.jsonl",
        val="runs/av_world/val.jsonl",
        held_out="runs/av_world/held_out.jsonl",
        groups=3,
        capacity=Capacity(rows=4, slots=304, tiles=128, windows=14, clips=14),
        workers=1,
        cache_media=True,
    )
    return to_config_dict(
        TrainConfig(
            model=model_config(),
            tokenizer=str(TOKENIZER),
            data=data,
            optimizer=OptimizerConfig(name="muon", learning_rate=5e-3),
            steps=1800,
            align_weight=0.01,
            dtype="float32",
            tower_remat="dots",
            decoder_remat="dots",
            eval_every=300,
            checkpoint_every=300,
        )
    )
