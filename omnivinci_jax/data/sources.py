"""The training sources of a configuration, and the records behind a path."""

from pathlib import Path

from omnivinci_jax.data.records import Jsonl, Records
from omnivinci_jax.data.shards import MANIFEST, Shards
from omnivinci_jax.data.spoken_prompts import SpokenPrompts
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.paths import AnyPath, absolute, is_remote
from omnivinci_jax.settings import DataConfig, Source


def open_records(path: AnyPath) -> Records:
    """Opens the records at a path: shards, or a local JSONL file. A missing file raises an error only when read."""
    return Shards(path) if is_remote(path) or (path / MANIFEST).exists() else Jsonl(Path(path))


def source_records(source: Source, settings: DataConfig) -> Records:
    """Opens the records of a source, with `speech_share` of the prompts spoken."""
    records = open_records(absolute(source.path))
    if not source.speech_share:
        return records
    return SpokenPrompts(records, source.speech_share, settings.voice, absolute(settings.cache) / "speech")


def training_sources(settings: DataConfig) -> tuple[Source, ...]:
    """Returns the sources with a positive weight; `train` is a mixture of one file.

    Raises:
        ConfigError: neither or both of `train` and `sources` are set, a value is out of range, or all weights are 0.
    """
    if bool(settings.train) == bool(settings.sources):
        given = "both are" if settings.train else "neither is"
        raise ConfigError(f"set config.data.train (one file) or config.data.sources (a mixture): {given} given")
    sources = settings.sources or (Source("train", settings.train, "omni"),)
    for source in sources:
        if not 0 <= source.speech_share <= 1:
            raise ConfigError(f"config.data.sources.{source.name}.speech_share is {source.speech_share}: give 0 to 1")
        if not 0 <= source.weight < float("inf"):
            raise ConfigError(f"config.data.sources.{source.name}.weight is {source.weight}: give 0 or more")
    weighted = tuple(source for source in sources if source.weight)
    if not weighted:
        raise ConfigError("config.data.sources: the weights sum to 0; give at least one source a weight above 0")
    return weighted
