"""`omnivinci index`: sizes and packing of a configuration's data, and the samples that cannot be used."""

import numpy as np

from omnivinci_jax.data.index import Index, IndexPool
from omnivinci_jax.data.setup import make_processor, open_settings_index
from omnivinci_jax.data.sources import open_records, source_records, training_sources
from omnivinci_jax.paths import absolute
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.packing import pack
from omnivinci_jax.settings import TrainConfig

_NAMES = ("slots", "tiles", "windows", "clips")


def describe_data(config: TrainConfig) -> str:
    """Indexes all sources, val and held_out; returns a Markdown table of sizes and packing, then all problems."""
    processor, lines, problems = make_processor(config), [], []
    header = ["data", "share", "samples", *(f"{name} (mean, max)" for name in _NAMES), "groups"]
    header += ["slots used", "tiles used"]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    sources = training_sources(config.data)
    weights = sum(source.weight for source in sources)
    shares = dict.fromkeys((source.modality for source in sources), 0.0)
    with IndexPool(config.data.workers) as pool:
        for source in sources:
            shares[source.modality] += source.weight / weights
            index = open_settings_index(source_records(source, config.data), processor, config.data, pool)
            problems += index.problems
            lines.append(_row(source.name, f"{source.weight / weights:.1%}", index, config.data.capacity))
        for name in ("val", "held_out"):
            if path := getattr(config.data, name):
                index = open_settings_index(open_records(absolute(path)), processor, config.data, pool)
                problems += index.problems
                lines.append(_row(name, "", index, config.data.capacity))
    if config.data.sources:
        largest_first = sorted(shares.items(), key=lambda item: -item[1])
        lines += ["", "samples: " + ", ".join(f"{name} {share:.1%}" for name, share in largest_first)]
    return "\n".join([*lines, "", f"{len(problems)} problem(s)", *problems])


def _row(name: str, share: str, index: Index, capacity: Capacity) -> str:
    if not len(index):
        return f"| {name} | {share} | 0 |" + " |" * 7
    groups = len(pack(index.sizes, capacity))
    used = index.sizes.sum(axis=0) / groups / np.array([capacity.rows * capacity.slots, *capacity[2:]])
    mean_and_max = [f"{column.mean():.0f}, {column.max()}" for column in index.sizes.T]
    cells = [name, share, str(len(index)), *mean_and_max, str(groups), f"{used[0]:.0%}", f"{used[1]:.0%}"]
    return "| " + " | ".join(cells) + " |"
