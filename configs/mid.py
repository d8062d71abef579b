"""The mid-size model of the benchmarks: 89,066,880 parameters without OmniAlignNet, which has 6.3 M.

It is large enough that matrix products dominate the time of a step, and small enough for two cores: a decoder of width
512 with 8 layers and a vocabulary of 32,000, SigLIP of width 384 with 6 layers at 224 px, and a sound tower of width
384 with 6 layers on windows of 30 s. A group has two rows, each for a video of eight frames with one window of sound
and a question about it. The demo's tokenizer uses the first ids of the vocabulary.

omnivinci train --config configs/mid.py --workdir runs/mid --config.data.train=FILE
"""

from pathlib import Path

from omnivinci_jax.config import AFWhisperConfig, OmniAlignConfig, OmniVinciConfig, Qwen2Config, SiglipConfig
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, OptimizerConfig, TrainConfig, to_config_dict

TOKENIZER = Path(__file__).parent / "tiny_tokenizer"


def model_config() -> OmniVinciConfig:
    """Returns the model, with 64 tokens per frame, not pooled in time, and 375 per window."""
    return OmniVinciConfig(
        text=Qwen2Config(
            vocab_size=32_000,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
        ),
        vision=SiglipConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=6,
            image_size=224,
            patch_size=14,
        ),
        audio=AFWhisperConfig(d_model=384, encoder_ffn_dim=1536, encoder_layers=6, encoder_attention_heads=6),
        s2_scales=(224, 448, 672),
        pool_sizes=((1, 1, 1),),
        num_video_frames=8,
        omni_align=OmniAlignConfig(num_heads=8),
    )


def get_config():
    data = DataConfig(groups=1, capacity=Capacity(rows=2, slots=1024, tiles=16, windows=2, clips=2), workers=1)
    return to_config_dict(
        TrainConfig(
            model=model_config(),
            tokenizer=str(TOKENIZER),
            data=data,
            optimizer=OptimizerConfig(learning_rate=1e-4),
            dtype="float32",
            tower_remat="dots",
            decoder_remat="dots",
        )
    )
