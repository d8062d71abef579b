"""Control charts, with a tiny model on a CPU; see docs/downstream.md.

omnivinci train --config configs/downstream/control_charts.py --workdir runs/control_charts
"""

from configs.downstream.time_series import picture_settings
from omnivinci_jax.settings import to_config_dict


def get_config():
    return to_config_dict(picture_settings("runs/control_chart_plots", steps=200))
