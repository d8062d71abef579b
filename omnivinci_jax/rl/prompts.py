"""The prompts of a run: conversations without their answer, each with a question to compare answers with."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import NamedTuple

from omnivinci_jax.data.index import Index, IndexPool
from omnivinci_jax.data.mixture import Blocks, Mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.questions import Question, read_question
from omnivinci_jax.data.records import Entry, WrappedRecords
from omnivinci_jax.data.setup import open_usable
from omnivinci_jax.data.sources import open_records, source_records, training_sources
from omnivinci_jax.errors import ConfigError, describe_at
from omnivinci_jax.paths import absolute
from omnivinci_jax.sequence.assemble import Tiles, Windows
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.chat import Conversation
from omnivinci_jax.sequence.row import Row
from omnivinci_jax.settings import DataConfig, TrainConfig

_OPENING_SLOTS = 16  # more than "<|im_start|>assistant\n" takes with any tokenizer


@dataclass(frozen=True)
class PromptRecords(WrappedRecords):
    """Records whose conversations end where the answer begins; `instruction` is added to the last message."""

    instruction: str

    def identity(self) -> tuple:
        """See `Records`."""
        return "prompts", *self.records.identity(), self.instruction

    def conversation(self, entry: Entry) -> Conversation:
        """See `Records`; raises DataError if the record has no right answer, or no user message at its end."""
        conversation = self.records.conversation(entry).unanswered
        read_question(self.record(entry), conversation.where)
        return conversation.with_line(self.instruction)


class LoadedPrompt(NamedTuple):
    """A prompt up to the answer, with its media; `text` is what its last message says."""

    row: Row
    tiles: Tiles
    windows: Windows
    text: str
    record: dict
    question: Question
    where: str
    source: int


def prompt_capacity(config: TrainConfig) -> Capacity:
    """Returns what one prompt may use of a group: as many prompts as a group has always fit, whatever is sampled.

    Raises:
        ConfigError: nothing is left for a prompt, or the group's rows cannot hold the longest answers.
    """
    data, grpo = config.data, config.grpo
    share, answers = group_share(config)
    slots = data.capacity.slots - grpo.max_new_tokens - _OPENING_SLOTS
    if slots < 1:
        raise ConfigError(
            f"config.data.capacity.slots is {data.capacity.slots}: a row must hold a prompt and "
            f"config.grpo.max_new_tokens = {grpo.max_new_tokens}"
        )
    if data.capacity.rows < share * answers:
        raise ConfigError(
            f"config.data.capacity.rows is {data.capacity.rows}: {share} prompts a group (config.grpo.prompts over "
            f"config.data.groups) with {answers} answers need {share * answers}, one for each answer"
        )
    tiles, windows, clips = (room // share for room in data.capacity[2:])
    return Capacity(1, slots, tiles, windows, clips)


def group_share(config: TrainConfig) -> tuple[int, int]:
    """Returns the prompts of a group, and the answers to each in it: a part, if several groups share a prompt."""
    grpo, groups = config.grpo, config.data.groups
    return max(grpo.prompts // groups, 1), grpo.answers * grpo.prompts // max(groups, grpo.prompts)


def open_prompts(processor: Processor, config: TrainConfig) -> Mixture:
    """Opens the training prompts; raises DataError or ConfigError."""
    settings = _prompt_settings(config)
    sources = training_sources(settings)
    with IndexPool(settings.workers) as pool:
        records = (PromptRecords(source_records(source, settings), config.grpo.instruction) for source in sources)
        return Mixture(sources, tuple(open_usable(item, processor, settings, pool) for item in records))


def open_prompt_file(path: str, processor: Processor, config: TrainConfig) -> Index:
    """Opens the prompts of one file; raises DataError."""
    settings = _prompt_settings(config)
    records = PromptRecords(open_records(absolute(path)), config.grpo.instruction)
    with IndexPool(settings.workers) as pool:
        return open_usable(records, processor, settings, pool)


def _prompt_settings(config: TrainConfig) -> DataConfig:
    return replace(config.data, capacity=prompt_capacity(config))


def prompt_order(mixture: Mixture, seed: int, start: int) -> Iterator[int]:
    """Yields the indices of the samples of an endless run, from position `start` on."""
    blocks = Blocks(mixture, seed)
    return islice((sample for block in count() for sample in blocks[block].tolist()), start, None)


def load_prompt(data: Mixture | Index, sample: int, processor: Processor) -> LoadedPrompt | str:
    """Loads a prompt and its media; returns one line that says why it cannot be read, if so."""
    try:
        conversation = processor.select(data.conversation(sample))
        sizes, tiles, windows = processor.load(conversation, int(data.max_frames[sample]) or None)
        row = processor.lay_out(conversation, sizes, generate=True)
        text = "".join(item for item in conversation.messages[-1].content if isinstance(item, str))
        record = data.record(sample)
        question = read_question(record, conversation.where)
        return LoadedPrompt(
            row, tiles, windows, text, record, question, conversation.where, int(data.source_of(sample))
        )
    except Exception as error:  # whatever one sample raises leaves out only that sample
        return describe_at(data.where(sample), error)
