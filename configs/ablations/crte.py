"""CRTE's horizon and θ: what it costs if all channels rotate far within a clip.

omnivinci ablate --config configs/ablations/crte.py --workdir runs/ablations
"""

from configs.ablations.baseline import baseline
from omnivinci_jax.evaluation.ablation import AblationConfig, Arm
from omnivinci_jax.settings import to_config_dict


def get_config():
    arms = (
        Arm("T_max 60 s, θ 5", {}),
        Arm("T_max 12 s, θ 5", {"model": _time(max_time=12.0)}),
        Arm("T_max 12 s, θ 10,000", {"model": _time(max_time=12.0, theta=10_000.0)}),
    )
    kinds = ("seen", "heard", "while", "order", "when")
    return to_config_dict(AblationConfig("CRTE", baseline("paired"), arms, kinds=kinds))


def _time(**values: float) -> dict:
    return {"video_time": values, "sound_time": values}
