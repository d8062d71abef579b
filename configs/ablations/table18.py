"""Table 18: what halves the sound tokens before their projector.

omnivinci ablate --config configs/ablations/table18.py --workdir runs/ablations
"""

from configs.ablations.baseline import baseline
from omnivinci_jax.ablation import AblationConfig, Arm
from omnivinci_jax.settings import to_config_dict


def get_config():
    arms = (
        Arm("all tokens", {"model": {"audio_compression": "none"}}),
        Arm("convolution", {"model": {"audio_compression": "conv"}}),
        Arm("average pooling", {"model": {"audio_compression": "average"}}),
        Arm("max pooling", {}),
    )
    kinds = ("heard", "while", "order", "when")
    return to_config_dict(AblationConfig("Table 18", baseline("independent"), arms, kinds=kinds, costs=True))
