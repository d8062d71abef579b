"""The index of a data file: the location and packed size of each conversation, found without decoding media.

Packing is planned from the index, so the data of a step is a pure function of (seed, step).
"""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64
from tqdm import tqdm

from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Entry, Records
from omnivinci_jax.errors import DataError, MediaError, UserError, describe_at
from omnivinci_jax.paths import AnyPath, atomic_file
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.chat import Conversation
from omnivinci_jax.sequence.packing import RowSize, fits, row_size
from omnivinci_jax.sequence.row import VideoSize

TooLong = Literal["skip", "thin"]
# (size, max frames, "") of a usable sample, else (None, 0, problem).
Measured = tuple[RowSize | None, int, str]
# With fewer samples, starting processes takes longer than measuring.
_MIN_POOL_SAMPLES = 1000


@dataclass(frozen=True)
class Index:
    """The usable samples of one file, and the problems of the others.

    locations: location of each sample's record (see `Entry`); lines: its line in the JSONL file, from 1.
    sizes: slots, tiles, windows and clips that each sample uses of a group.
    max_frames: limit on frames per video where a long sample was thinned; 0 for the model's limit.
    problems: one line per skipped sample.
    """

    records: Records
    locations: Int64[np.ndarray, " samples"]
    lines: Int64[np.ndarray, " samples"]
    sizes: Int64[np.ndarray, "samples 4"]
    max_frames: Int32[np.ndarray, " samples"]
    problems: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.locations)

    @property
    def problem_share(self) -> float:
        """Share of the file's samples that cannot be used."""
        return len(self.problems) / (len(self) + len(self.problems))

    @property
    def path(self) -> AnyPath:
        """Path of the file."""
        return self.records.path

    def where(self, sample: int) -> str:
        """Returns the file and line of a sample."""
        return f"{self.path}:{self.lines[sample]}"

    def source_of(self, sample: int) -> int:
        """Returns the index of a sample's source in its mixture: 0, since a single file has one source."""
        return 0

    def record(self, sample: int) -> dict:
        """Returns the JSON object of a sample."""
        return self.records.record(self._entry(sample))

    def conversation(self, sample: int) -> Conversation:
        """Returns the conversation of a sample."""
        return self.records.conversation(self._entry(sample))

    def _entry(self, sample: int) -> Entry:
        location = int(self.locations[sample])
        return Entry(location, int(self.lines[sample]), self.records.read(location))


class IndexPool:
    """Processes that measure samples for an index. The first large file starts them; all files share them."""

    def __init__(self, workers: int):
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "IndexPool":
        return self

    def __exit__(self, *_) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[Entry], Measured], entries: list[Entry]) -> Iterator[Measured]:
        """Yields `work(entry)` for each entry, in order."""
        if self._workers < 2 or len(entries) < _MIN_POOL_SAMPLES:
            return map(work, entries)
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"))
        return self._pool.map(work, entries, chunksize=64)


def build_index(
    records: Records,
    processor: Processor,
    capacity: Capacity,
    too_long: TooLong,
    pool: IndexPool | None = None,
    quiet: bool = False,
) -> Index:
    """Reads every conversation and the headers of its media.

    Samples that cannot be read, or that do not fit into a group, are listed in `problems`.

    Raises:
        DataError: the file has no conversations.
        UserError: something that every sample needs is missing, for example the voice of spoken prompts.
    """
    entries = records.entries()
    work = partial(_measure, records=records, processor=processor, capacity=capacity, too_long=too_long)
    results = (pool or IndexPool(1)).map(work, entries)
    name = f"index {records.path.name}"
    results = list(tqdm(results, total=len(entries), desc=name, unit=" samples", disable=quiet, mininterval=0.5))
    kept = [
        (location, line, *size, frames)
        for (location, line, _), (size, frames, _) in zip(entries, results, strict=True)
        if size
    ]
    table = np.array(kept, np.int64).reshape(-1, 7)
    problems = tuple(problem for _, _, problem in results if problem)
    return Index(
        records,
        locations=table[:, 0],
        lines=table[:, 1],
        sizes=table[:, 2:6],
        max_frames=table[:, 6].astype(np.int32),
        problems=problems,
    )


def open_index(
    records: Records,
    processor: Processor,
    capacity: Capacity,
    too_long: TooLong,
    folder: AnyPath,
    pool: IndexPool,
    max_skipped: float = 1.0,
) -> Index:
    """Returns the index saved in `folder`, or a new one if the file, the settings or the tokenizer changed.

    An index with a larger share of problems than `max_skipped` is not saved, since the user must fix them first.
    """
    identity = (records.identity(), processor.tokenizer.digest, processor.config, processor.drop)
    key = hashlib.sha256(repr((identity, capacity, too_long)).encode()).hexdigest()[:16]
    saved = folder / f"{records.path.stem}-{key}.npz"
    if saved.exists():
        with saved.open("rb") as file, np.load(file) as arrays:
            columns = (arrays[name] for name in ("places", "lines", "sizes", "max_frames"))
            return Index(records, *columns, problems=tuple(arrays["problems"].tolist()))
    index = build_index(records, processor, capacity, too_long, pool)
    if index.problem_share > max_skipped:
        return index
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(saved) as part, open(part, "wb") as file:
        np.savez(
            file,
            places=index.locations,
            lines=index.lines,
            sizes=index.sizes,
            max_frames=index.max_frames,
            problems=np.array(index.problems, str),
        )
    return index


def _measure(entry: Entry, records: Records, processor: Processor, capacity: Capacity, too_long: TooLong) -> Measured:
    where = f"{records.path}:{entry.line}"
    try:
        conversation = processor.select(records.conversation(entry))
        max_frames = 0
        while True:
            sizes = processor.measure(conversation, max_frames or None)
            size = row_size(processor.lay_out(conversation, sizes), len(conversation.media))
            if fits(size, capacity):
                return size, max_frames, ""
            frames = max((len(size.frame_times) for size in sizes if isinstance(size, VideoSize)), default=0)
            if too_long == "skip" or frames <= 1:
                return None, 0, f"{where}: {_excess(size, capacity)}"
            max_frames = frames // 2
    except Exception as error:  # whatever one sample raises leaves out only that sample
        if isinstance(error, UserError) and not isinstance(error, DataError | MediaError):
            raise
        return None, 0, describe_at(where, error)


def _excess(size: RowSize, capacity: Capacity) -> str:
    over = [
        f"{used} {name} where data.capacity.{name} is {room}"
        for name, used, room in zip(size._fields, size, capacity[1:], strict=True)
        if used > room
    ]
    return f"the sample does not fit: {', '.join(over)}; raise it, or set data.too_long=thin to take fewer frames"
