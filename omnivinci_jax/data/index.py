"""The index of a JSONL file: where each conversation stands and what it takes of a group, known without decoding.

From it packs are planned, so that what a step reads is a pure function of (seed, step).
"""

import hashlib
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64
from tqdm import tqdm

from omnivinci_jax.data.processor import Processor
from omnivinci_jax.errors import DataError, MediaError
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.chat import Conversation, parse_conversation
from omnivinci_jax.sequence.packing import fits, row_size

TooLong = Literal["skip", "thin"]


@dataclass(frozen=True)
class Index:
    """Samples of one file that can be used, and the problems of those that cannot.

    offsets: where each sample's line starts in the file, in bytes; lines: its number, from 1.
    sizes: what it takes of a group (slots, tiles, windows, clips).
    max_frames: most frames of its videos, 0 for the model's own; fewer where a long sample was thinned.
    problems: one line each for the samples left out.
    """

    path: Path
    offsets: Int64[np.ndarray, " samples"]
    lines: Int64[np.ndarray, " samples"]
    sizes: Int64[np.ndarray, "samples 4"]
    max_frames: Int32[np.ndarray, " samples"]
    problems: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offsets)

    def where(self, sample: int) -> str:
        """File and line of a sample."""
        return f"{self.path}:{self.lines[sample]}"

    def record(self, sample: int) -> dict:
        """The JSON object of a sample."""
        with open(self.path, "rb") as file:
            file.seek(int(self.offsets[sample]))
            return json.loads(file.readline())

    def conversation(self, sample: int) -> Conversation:
        """The conversation of a sample."""
        return parse_conversation(self.record(sample), self.where(sample), self.path.parent)


def read_lines(path: Path) -> list[tuple[int, int, bytes]]:
    """(offset in bytes, line number from 1, line) of every line that is not blank; raises DataError."""
    _check_is_there(path)
    with open(path, "rb") as file:
        lines, offset = [], 0
        for number, line in enumerate(file, start=1):
            if line.strip():
                lines.append((offset, number, line))
            offset += len(line)
    if not lines:
        raise DataError(f"{path}: the file has no conversations")
    return lines


def build_index(
    path: Path, processor: Processor, capacity: Capacity, too_long: TooLong, workers: int = 1, quiet: bool = False
) -> Index:
    """Reads every conversation of a JSONL file and the headers of its media.

    A sample whose media cannot be read, or that is longer than a row, is a problem of the index.

    Raises:
        DataError: a line that is no conversation (the first one).
    """
    lines = read_lines(path)
    work = partial(_index_line, path=path, processor=processor, capacity=capacity, too_long=too_long)
    results = []
    with tqdm(total=len(lines), desc=f"index {path.name}", unit=" samples", disable=quiet, mininterval=0.5) as bar:
        if workers > 1 and len(lines) > 1000:
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                for result in pool.map(work, lines, chunksize=64):
                    results.append(result)
                    bar.update()
        else:
            for line in lines:
                results.append(work(line))
                bar.update()
    kept = [
        (offset, number, *size, frames)
        for (offset, number, _), (size, frames, _) in zip(lines, results, strict=True)
        if size
    ]
    table = np.array(kept, np.int64).reshape(-1, 7)
    problems = tuple(problem for _, _, problem in results if problem)
    return Index(path, table[:, 0], table[:, 1], table[:, 2:6], table[:, 6].astype(np.int32), problems)


def open_index(
    path: Path, processor: Processor, capacity: Capacity, too_long: TooLong, folder: Path, workers: int = 1
) -> Index:
    """The index saved in `folder`, or a new one where the file, the settings or the tokenizer changed."""
    _check_is_there(path)
    stat = path.stat()
    tokenizer = hashlib.sha256(processor.tokenizer.path.read_bytes()).hexdigest()
    identity = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, tokenizer, processor.config, processor.drop)
    key = hashlib.sha256(repr((identity, capacity, too_long)).encode()).hexdigest()[:16]
    saved = folder / f"{path.stem}-{key}.npz"
    if saved.exists():
        with np.load(saved) as arrays:
            columns = [arrays[name] for name in ("offsets", "lines", "sizes", "max_frames")]
            return Index(path, *columns, tuple(arrays["problems"].tolist()))
    index = build_index(path, processor, capacity, too_long, workers)
    folder.mkdir(parents=True, exist_ok=True)
    part = saved.with_suffix(f".{os.uname().nodename}-{os.getpid()}.npz")  # other hosts may be at the same file
    np.savez(
        part,
        offsets=index.offsets,
        lines=index.lines,
        sizes=index.sizes,
        max_frames=index.max_frames,
        problems=np.array(index.problems, str),
    )
    os.replace(part, saved)
    return index


def parse_line(path: Path, number: int, line: bytes) -> Conversation:
    """The conversation on one line; raises DataError that starts with file:line."""
    where = f"{path}:{number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    return parse_conversation(record, where, path.parent)


def _check_is_there(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file; a data file is JSONL, one conversation a line")


def _index_line(line: tuple[int, int, bytes], path: Path, processor: Processor, capacity: Capacity, too_long: TooLong):
    """(size, max_frames, "") of a line that can be used, else (None, 0, problem)."""
    conversation = parse_line(path, *line[1:])
    try:
        conversation = processor.select(conversation)
        most = 0
        while True:
            sizes = processor.measure(conversation, most or None)
            size = row_size(processor.lay_out(conversation, sizes), len(conversation.media))
            if fits(size, capacity):
                return size, most, ""
            frames = max((len(s.frame_times) for s in sizes if hasattr(s, "frame_times")), default=0)
            if too_long == "skip" or frames <= 1:
                return None, 0, f"{conversation.where}: {_excess(size, capacity)}"
            most = frames // 2
    except MediaError as error:
        return None, 0, f"{conversation.where}: {error}"


def _excess(size, capacity: Capacity) -> str:
    over = [
        f"{taken} {name} where data.capacity.{name} is {room}"
        for name, taken, room in zip(size._fields, size, capacity[1:], strict=True)
        if taken > room
    ]
    return f"the sample does not fit: {', '.join(over)}; raise it, or set data.too_long=thin to take fewer frames"
