"""The index of a data file: where each conversation stands and what it takes of a group, known without decoding.

From it packs are planned, so that what a step reads is a pure function of (seed, step).
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
from omnivinci_jax.errors import MediaError
from omnivinci_jax.paths import AnyPath, atomic_file
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.chat import Conversation
from omnivinci_jax.sequence.packing import RowSize, fits, row_size
from omnivinci_jax.sequence.row import VideoSize

TooLong = Literal["skip", "thin"]
# (size, most frames, "") of a sample that can be used, else (None, 0, problem).
Measured = tuple[RowSize | None, int, str]
# Samples of a file below which starting processes takes longer than measuring.
_WORTH_A_POOL = 1000


@dataclass(frozen=True)
class Index:
    """Samples of one file that can be used, and the problems of those that cannot.

    places: where each sample's record is; lines: the number of its line in the JSONL file, from 1.
    sizes: what it takes of a group (slots, tiles, windows, clips).
    max_frames: most frames of its videos, 0 for the model's own; fewer where a long sample was thinned.
    problems: one line each for the samples left out.
    """

    records: Records
    places: Int64[np.ndarray, " samples"]
    lines: Int64[np.ndarray, " samples"]
    sizes: Int64[np.ndarray, "samples 4"]
    max_frames: Int32[np.ndarray, " samples"]
    problems: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def problem_share(self) -> float:
        """Share of the file's samples that cannot be used."""
        return len(self.problems) / (len(self) + len(self.problems))

    @property
    def path(self) -> AnyPath:
        """The file."""
        return self.records.path

    def where(self, sample: int) -> str:
        """File and line of a sample."""
        return f"{self.path}:{self.lines[sample]}"

    def source_of(self, sample: int) -> int:
        """Number of the source of a sample in its mixture; alone, a file is its only one."""
        return 0

    def record(self, sample: int) -> dict:
        """The JSON object of a sample."""
        return self.records.record(self._entry(sample))

    def conversation(self, sample: int) -> Conversation:
        """The conversation of a sample."""
        return self.records.conversation(self._entry(sample))

    def _entry(self, sample: int) -> Entry:
        place = int(self.places[sample])
        return Entry(place, int(self.lines[sample]), self.records.read(place))


class IndexPool:
    """Processes that measure samples for indices. The first large file starts them; all files share them."""

    def __init__(self, workers: int):
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "IndexPool":
        return self

    def __exit__(self, *_) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[Entry], Measured], entries: list[Entry]) -> Iterator[Measured]:
        """Yields `work(entry)` of each entry, in order."""
        if self._workers < 2 or len(entries) < _WORTH_A_POOL:
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

    A sample whose media cannot be read, or that is longer than a row, is a problem of the index.

    Raises:
        DataError: a line that is no conversation (the first one).
    """
    entries = records.entries()
    work = partial(_measure, records=records, processor=processor, capacity=capacity, too_long=too_long)
    results = (pool or IndexPool(1)).map(work, entries)
    name = f"index {records.path.name}"
    results = list(tqdm(results, total=len(entries), desc=name, unit=" samples", disable=quiet, mininterval=0.5))
    kept = [
        (place, line, *size, frames)
        for (place, line, _), (size, frames, _) in zip(entries, results, strict=True)
        if size
    ]
    table = np.array(kept, np.int64).reshape(-1, 7)
    problems = tuple(problem for _, _, problem in results if problem)
    return Index(
        records,
        places=table[:, 0],
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
    """The index saved in `folder`, or a new one where the file, the settings or the tokenizer changed.

    One with a larger share of problems than `max_skipped` is not saved: they are there to be mended.
    """
    identity = (records.identity(), processor.tokenizer.digest, processor.config, processor.drop)
    key = hashlib.sha256(repr((identity, capacity, too_long)).encode()).hexdigest()[:16]
    saved = folder / f"{records.path.stem}-{key}.npz"
    if saved.exists():
        with saved.open("rb") as file, np.load(file) as arrays:
            columns = {name: arrays[name] for name in ("places", "lines", "sizes", "max_frames")}
            return Index(records, **columns, problems=tuple(arrays["problems"].tolist()))
    index = build_index(records, processor, capacity, too_long, pool)
    if index.problem_share > max_skipped:
        return index
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(saved) as part, open(part, "wb") as file:
        np.savez(
            file,
            places=index.places,
            lines=index.lines,
            sizes=index.sizes,
            max_frames=index.max_frames,
            problems=np.array(index.problems, str),
        )
    return index


def _measure(entry: Entry, records: Records, processor: Processor, capacity: Capacity, too_long: TooLong) -> Measured:
    conversation = records.conversation(entry)
    try:
        conversation = processor.select(conversation)
        most = 0
        while True:
            sizes = processor.measure(conversation, most or None)
            size = row_size(processor.lay_out(conversation, sizes), len(conversation.media))
            if fits(size, capacity):
                return size, most, ""
            frames = max((len(size.frame_times) for size in sizes if isinstance(size, VideoSize)), default=0)
            if too_long == "skip" or frames <= 1:
                return None, 0, f"{conversation.where}: {_excess(size, capacity)}"
            most = frames // 2
    except MediaError as error:
        return None, 0, f"{conversation.where}: {error}"


def _excess(size: RowSize, capacity: Capacity) -> str:
    over = [
        f"{taken} {name} where data.capacity.{name} is {room}"
        for name, taken, room in zip(size._fields, size, capacity[1:], strict=True)
        if taken > room
    ]
    return f"the sample does not fit: {', '.join(over)}; raise it, or set data.too_long=thin to take fewer frames"
