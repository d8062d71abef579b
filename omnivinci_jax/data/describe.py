"""`omnivinci index`: what the data of a configuration take of a batch, and what of them cannot be used."""

from pathlib import Path

import numpy as np

from omnivinci_jax.data.index import Index, open_index
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.packing import pack
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import DataConfig, TrainConfig, absolute

_NAMES = ("slots", "tiles", "windows", "clips")


def open_settings_index(path: str, processor: Processor, settings: DataConfig) -> Index:
    """The index of one of a configuration's data files, made or read in its cache."""
    folder = absolute(settings.cache) / "index"
    return open_index(absolute(path), processor, settings.capacity, settings.too_long, folder, settings.workers)


def make_processor(config: TrainConfig) -> Processor:
    """The way from files to rows of a configuration; raises ConfigError for a tokenizer that does not fit."""
    if not config.tokenizer:
        raise ConfigError("config.tokenizer is empty: give the folder of a tokenizer.json")
    tokenizer = Tokenizer(absolute(config.tokenizer))
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise ConfigError(
            f"config.model.text.vocab_size is {config.model.text.vocab_size}: the tokenizer has "
            f"{tokenizer.vocab_size} ids"
        )
    cache = absolute(config.data.cache) / "media" if config.data.cache_media else None
    return Processor(config.model, tokenizer, config.data.drop, cache)


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
