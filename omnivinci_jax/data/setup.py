"""Builds the processor and indexes of a run from its settings, for training, evaluation and `omnivinci index`."""

from omnivinci_jax.data.index import Index, IndexPool, open_index
from omnivinci_jax.data.mixture import Mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Records, check_skipped
from omnivinci_jax.data.sources import open_records, source_records, training_sources
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.paths import absolute
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.settings import DataConfig, TrainConfig


def make_processor(config: TrainConfig) -> Processor:
    """Builds the processor of a configuration; raises ConfigError if the tokenizer is missing or has too many ids."""
    if not config.tokenizer:
        raise ConfigError("config.tokenizer is empty: give the folder of a tokenizer.json")
    tokenizer = Tokenizer(absolute(config.tokenizer))
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise ConfigError(
            f"config.model.text.vocab_size is {config.model.text.vocab_size}: the tokenizer has "
            f"{tokenizer.vocab_size} ids"
        )
    cache = absolute(config.data.cache) / "media" if config.data.cache_media else None
    return Processor(config.model, tokenizer, drop=config.data.drop, cache=cache)


def open_mixture(processor: Processor, settings: DataConfig) -> Mixture:
    """Opens the training mixture of a configuration; raises DataError or ConfigError."""
    sources = training_sources(settings)
    with IndexPool(settings.workers) as pool:
        indices = (open_usable(source_records(source, settings), processor, settings, pool) for source in sources)
        return Mixture(sources, tuple(indices))


def open_data(path: str, processor: Processor, settings: DataConfig) -> Index:
    """Opens the index of a data file; raises DataError if more than `max_skipped` of its samples cannot be used."""
    with IndexPool(settings.workers) as pool:
        return open_usable(open_records(absolute(path)), processor, settings, pool)


def open_usable(records: Records, processor: Processor, settings: DataConfig, pool: IndexPool) -> Index:
    """Opens the index of records; raises DataError if more than `max_skipped` of them cannot be used."""
    index = open_settings_index(records, processor, settings, pool)
    check_skipped(index.problems, len(index) + len(index.problems), settings.max_skipped, records.path)
    return index


def open_settings_index(records: Records, processor: Processor, settings: DataConfig, pool: IndexPool) -> Index:
    """Returns the index of records, built or read from the configured cache."""
    folder = absolute(settings.cache) / "index"
    return open_index(records, processor, settings.capacity, settings.too_long, folder, pool, settings.max_skipped)
