"""The registry of a configuration's training data: which sources there are, and what a path holds."""

from pathlib import Path

from omnivinci_jax.data.records import Jsonl, Records
from omnivinci_jax.data.shards import MANIFEST, Shards
from omnivinci_jax.data.spoken_prompts import SpokenPrompts
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.paths import AnyPath, absolute, is_remote
from omnivinci_jax.settings import DataConfig, Source


def open_records(path: AnyPath) -> Records:
    """What a path holds: shards, or on a disk a JSONL file; that it is missing shows when it is read."""
    return Shards(path) if is_remote(path) or (path / MANIFEST).exists() else Jsonl(Path(path))


def source_records(source: Source, settings: DataConfig) -> Records:
    """What a source holds, a share of it with spoken prompts."""
    records = open_records(absolute(source.path))
    if not source.speech_share:
        return records
    return SpokenPrompts(records, source.speech_share, settings.voice, absolute(settings.cache) / "speech")


def training_sources(settings: DataConfig) -> tuple[Source, ...]:
    """The sources with a weight; a single file is a mixture of one.

    Raises:
        ConfigError: neither or both of `train` and `sources`, a negative weight, or none above 0.
    """
    if bool(settings.train) == bool(settings.sources):
        given = "both are" if settings.train else "neither is"
        raise ConfigError(f"config.data.train is one file, config.data.sources a mixture of several: {given} given")
    sources = settings.sources or (Source("train", settings.train, "omni"),)
    for source in sources:
        if not 0 <= source.speech_share <= 1:
            raise ConfigError(f"config.data.sources.{source.name}.speech_share is {source.speech_share}: it is 0 to 1")
        if not 0 <= source.weight < float("inf"):
            raise ConfigError(f"config.data.sources.{source.name}.weight is {source.weight}: it is 0 or more")
    weighted = tuple(source for source in sources if source.weight)
    if not weighted:
        raise ConfigError("config.data.sources: the weights sum to 0; give at least one source a weight above 0")
    return weighted
