"""OmniVinci at its published size: 8,742,888,688 parameters without OmniAlignNet.

omnivinci train --config configs/omnivinci_9b.py --workdir runs/9b --config.tokenizer=DIR --config.data.train=FILE

As in the paper's joint training (Appendix C.3), projectors, OmniAlignNet and decoder train; both encoders are frozen.
Use --config configs/omnivinci_9b.py:1.5b for another decoder (0.5b, 1.5b, 3b or 7b) with the published towers.
"""

from omnivinci_jax.config import OmniAlignConfig, OmniVinciConfig, Qwen2Config
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, OptimizerConfig, TrainConfig, nearest, to_config_dict
from omnivinci_jax.train.stages import frozen_in

# Qwen2.5's decoders; all but the 7b one tie embedding and head.
DECODERS = {
    "0.5b": Qwen2Config(151_936, 896, 4864, 24, 14, 2, tie_word_embeddings=True),
    "1.5b": Qwen2Config(151_936, 1536, 8960, 28, 12, 2, tie_word_embeddings=True),
    "3b": Qwen2Config(151_936, 2048, 11_008, 36, 16, 2, tie_word_embeddings=True),
    "7b": Qwen2Config(),
}


def model_config(decoder: str = "7b") -> OmniVinciConfig:
    """Returns the published model, or its towers and projectors with a smaller Qwen2.5; raises ConfigError."""
    if decoder not in DECODERS:
        raise ConfigError(f"{decoder!r}: no such decoder{nearest(decoder, DECODERS)}")
    text = DECODERS[decoder]
    align = OmniAlignConfig(num_heads=text.num_attention_heads)
    return OmniVinciConfig(text=text, omni_align=align)


def get_config(decoder: str = "7b"):
    data = DataConfig(groups=8, capacity=Capacity(rows=1, slots=16_384, tiles=160, windows=24, clips=8), workers=8)
    return to_config_dict(
        TrainConfig(
            model=model_config(decoder),
            data=data,
            optimizer=OptimizerConfig(learning_rate=2e-5),
            steps=10_000,
            align_weight=0.1,
            frozen=frozen_in("omni"),
        )
    )
