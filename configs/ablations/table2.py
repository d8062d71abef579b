"""Table 2: implicit learning from videos with their sound, and explicit learning from omni captions.

omnivinci ablate --config configs/ablations/table2.py --workdir runs/ablations
"""

from configs.ablations.baseline import baseline
from omnivinci_jax.evaluation.ablation import AblationConfig, Arm
from omnivinci_jax.settings import to_config_dict

ONLY_QUESTIONS = {"sources": {"captions": {"weight": 0.0}}}


def get_config():
    arms = (
        Arm("vision", {"data": ONLY_QUESTIONS | {"drop": "sound"}}),
        Arm("vision + audio (implicit)", {"data": ONLY_QUESTIONS}),
        Arm("vision + audio + omni captions (explicit)", {}),
    )
    kinds = ("seen", "heard", "while", "order", "when")
    return to_config_dict(AblationConfig("Table 2", baseline("independent"), arms, kinds=kinds))
