"""Table 1: how time enters the sequence, and OmniAlignNet; each arm adds to the nearest arm above it with fewer +.

omnivinci ablate --config configs/ablations/table1.py --workdir runs/ablations
"""

from configs.ablations.baseline import baseline
from omnivinci_jax.evaluation.ablation import AblationConfig, Arm
from omnivinci_jax.settings import to_config_dict


def get_config():
    arms = (
        Arm("concatenation", {"model": {"temporal_group_seconds": None, **_time("none")}}),
        Arm("+ TEG", {"model": _time("none")}),
        Arm("++ learned time", {"model": _time("learned")}),
        Arm("++ RoTE", {"model": _time("rote")}),
        Arm("++ CRTE", {}),
        Arm("+++ OmniAlignNet", {"align_weight": 0.1}),
    )
    kinds = ("seen", "heard", "while", "order", "when")
    return to_config_dict(AblationConfig("Table 1", baseline("paired"), arms, kinds=kinds))


def _time(scheme: str) -> dict:
    return {"video_time": {"scheme": scheme}, "sound_time": {"scheme": scheme}}
