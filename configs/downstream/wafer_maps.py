"""Wafer maps, with a tiny model on a CPU; see docs/downstream.md.

omnivinci train --config configs/downstream/wafer_maps.py --workdir runs/wafer_maps
"""

from configs.downstream.time_series import picture_settings
from omnivinci_jax.settings import to_config_dict


def get_config():
    return to_config_dict(picture_settings("runs/wafer_map_pictures", steps=200))
