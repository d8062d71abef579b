"""Table 18: how to halve the number of sound tokens before their projector.

Rows are long enough for all tokens, so only the number of frames limits a group: five clips per step in every arm.

omnivinci ablate --config configs/ablations/table18.py --workdir runs/ablations
"""

import dataclasses

from configs.ablations.baseline import baseline
from omnivinci_jax.evaluation.ablation import AblationConfig, Arm
from omnivinci_jax.settings import to_config_dict


def get_config():
    arms = (
        Arm("all tokens", {"model": {"audio_compression": "none"}}),
        Arm("convolution", {"model": {"audio_compression": "conv"}}),
        Arm("average pooling", {"model": {"audio_compression": "average"}}),
        Arm("max pooling", {}),
    )
    train = baseline("independent")
    capacity = train.data.capacity._replace(rows=3, slots=544, tiles=80)
    train = dataclasses.replace(train, data=dataclasses.replace(train.data, capacity=capacity))
    kinds = ("heard", "while", "order", "when")
    return to_config_dict(AblationConfig("Table 18", train, arms, kinds=kinds, costs=True))
