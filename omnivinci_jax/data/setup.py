"""From a run's settings to its processor and indices: what training, evaluation and `omnivinci index` begin with."""

from omnivinci_jax.data.index import Index, Measurers, open_index
from omnivinci_jax.data.mixture import Mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.sources import open_records, training_sources
from omnivinci_jax.errors import ConfigError, DataError
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import DataConfig, TrainConfig, absolute


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


def open_mixture(processor: Processor, settings: DataConfig) -> Mixture:
    """The training data of a configuration; raises DataError and ConfigError."""
    sources = training_sources(settings)
    with Measurers(settings.workers) as measurers:
        return Mixture(sources, tuple(open_data(source.path, processor, settings, measurers) for source in sources))


def open_data(path: str, processor: Processor, settings: DataConfig, measurers: Measurers | None = None) -> Index:
    """The index of a data file; raises DataError where more than `max_skipped` of it cannot be used."""
    index = open_settings_index(path, processor, settings, measurers)
    share = len(index.problems) / (len(index) + len(index.problems))
    if share > settings.max_skipped:
        shown = "".join(f"\n  {problem}" for problem in index.problems[:20])
        raise DataError(
            f"{path}: {len(index.problems)} of {len(index) + len(index.problems)} samples cannot be used, more than "
            f"data.max_skipped = {settings.max_skipped:g} allows:{shown}"
        )
    return index


def open_settings_index(
    path: str, processor: Processor, settings: DataConfig, measurers: Measurers | None = None
) -> Index:
    """The index of one of a configuration's data files, made or read in its cache."""
    if measurers is None:
        with Measurers(settings.workers) as measurers:
            return open_settings_index(path, processor, settings, measurers)
    folder = absolute(settings.cache) / "index"
    return open_index(open_records(absolute(path)), processor, settings.capacity, settings.too_long, folder, measurers)
