"""`omnivinci index`: what the data of a configuration take of a batch, and what of them cannot be used."""

from pathlib import Path

import numpy as np

from omnivinci_jax.data.index import Index
from omnivinci_jax.data.setup import make_processor, open_settings_index
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.packing import pack
from omnivinci_jax.settings import TrainConfig

_NAMES = ("slots", "tiles", "windows", "clips")


def describe_data(config: TrainConfig) -> str:
    """Indexes train, val and held_out; a Markdown table of sizes and packing, then every problem."""
    processor, lines, problems = make_processor(config), [], []
    header = ["file", "samples", *(f"{name} (mean, most)" for name in _NAMES), "groups", "slots used", "tiles used"]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for path in filter(None, (config.data.train, config.data.val, config.data.held_out)):
        index = open_settings_index(path, processor, config.data)
        problems += index.problems
        lines.append(_row(index, config.data.capacity))
    return "\n".join([*lines, "", f"{len(problems)} problem(s)", *problems])


def _row(index: Index, capacity: Capacity) -> str:
    if not len(index):
        return f"| {index.path.name} | 0 |" + " |" * 7
    groups = len(pack(index.sizes, capacity))
    used = index.sizes.sum(axis=0) / groups / np.array([capacity.rows * capacity.slots, *capacity[2:]])
    spread = [f"{column.mean():.0f}, {column.max()}" for column in index.sizes.T]
    cells = [Path(index.path).name, str(len(index)), *spread, str(groups), f"{used[0]:.0%}", f"{used[1]:.0%}"]
    return "| " + " | ".join(cells) + " |"
