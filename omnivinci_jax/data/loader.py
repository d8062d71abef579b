"""Batches from indexed files: planned packs, read by Grain's worker processes.

What group number n holds is a pure function of (index, capacity, seed, n); resuming is an integer.
"""

import multiprocessing.connection
import os
import threading
from typing import NamedTuple

import grain
import jax  # for its trees alone; Grain imports it in every worker anyway
import numpy as np

from omnivinci_jax.data.index import Index
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.errors import DataError, MediaError, UserError
from omnivinci_jax.sequence.assemble import PackedRow, assemble
from omnivinci_jax.sequence.batch import Batch, Capacity
from omnivinci_jax.sequence.packing import pack, row_size

# Samples that are packed together: enough to fill groups well, few enough to plan any epoch piece by piece.
_BLOCK = 2048


class Plan:
    """Which samples each group holds, endlessly: epoch after epoch, shuffled, packed block by block."""

    def __init__(self, index: Index, capacity: Capacity, seed: int):
        if not len(index):
            raise DataError(f"{index.path}: no sample can be used:\n" + "\n".join(index.problems[:20]))
        self._sizes, self._capacity, self._seed = index.sizes, capacity, seed
        self._groups: list[list[list[int]]] = []
        self._epochs = 0

    def __getitem__(self, number: int) -> list[list[int]]:
        """Rows of group `number`, each a list of sample numbers."""
        while number >= len(self._groups):
            self._plan_epoch()
        return self._groups[number]

    def _plan_epoch(self) -> None:
        random = np.random.default_rng((self._seed, self._epochs))
        order = random.permutation(len(self._sizes))
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            groups = pack(self._sizes[block], self._capacity)
            for group in random.permutation(len(groups)):
                self._groups.append([[int(block[sample]) for sample in row] for row in groups[group]])
        self._epochs += 1


class Loaded(NamedTuple):
    """A batch with the numbers of the samples in it, row by row, and a line for each sample that could not be read."""

    batch: Batch
    samples: list[list[list[int]]]
    skipped: list[str]


class Groups(grain.sources.RandomAccessDataSource):
    """Group number n, decoded and assembled; a sample that cannot be read leaves masked padding and a line."""

    def __init__(self, index: Index, groups, count: int, processor: Processor, capacity: Capacity):
        self._index, self._groups, self._count = index, groups, count
        self._processor, self._capacity = processor, capacity

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Loaded:
        packed, read, skipped = [], [], []
        for place, row in enumerate(self._groups[number]):
            read.append([])
            for sample in row:
                try:
                    packed.append(self._load(sample, place))
                    read[place].append(sample)
                except UserError as error:
                    skipped.append(f"{self._index.path}:{self._index.lines[sample]}: {error}")
        return Loaded(assemble(packed, self._processor.config, self._capacity), read, skipped)

    def _load(self, sample: int, place: int) -> PackedRow:
        conversation = self._processor.select(self._index.conversation(sample))
        sizes, tiles, windows = self._processor.load(conversation, int(self._index.max_frames[sample]) or None)
        row = self._processor.lay_out(conversation, sizes)
        if row_size(row, len(conversation.media)) != tuple(self._index.sizes[sample]):
            names = ", ".join(item.path for item in conversation.media)
            raise MediaError(f"{names}: changed since it was indexed; index the data again")
        return PackedRow(place, row, tiles, windows)


def train_batches(
    index: Index,
    processor: Processor,
    capacity: Capacity,
    *,
    groups: int,
    seed: int,
    start: int,
    stop: int,
    workers: int,
) -> grain.IterDataset:
    """Batches of steps `start` to `stop`, each of `groups` groups."""
    source = Groups(index, Plan(index, capacity, seed), stop * groups, processor, capacity)
    return _batches(source, groups, start, workers)


def all_batches(
    index: Index, processor: Processor, capacity: Capacity, *, groups: int, workers: int
) -> grain.IterDataset:
    """Every sample of a file once, in batches of `groups` groups; the last ones hold padding where they must."""
    packed = pack(index.sizes, capacity)
    packed += [[] for _ in range(-len(packed) % groups)]
    return _batches(Groups(index, packed, len(packed), processor, capacity), groups, 0, workers)


def _batches(source: Groups, groups: int, start: int, workers: int) -> grain.IterDataset:
    dataset = grain.MapDataset.source(source)[start * groups :].batch(groups, batch_fn=_stack)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    if not workers:
        return dataset
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _end_with_parent)


def _end_with_parent(worker: int, workers: int) -> None:
    """Ends a worker when the training process is gone: one that was killed cannot tell its workers."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _stack(loaded: list[Loaded]) -> Loaded:
    batch = jax.tree.map(lambda *arrays: np.stack(arrays), *(group.batch for group in loaded))
    return Loaded(batch, [group.samples for group in loaded], [line for group in loaded for line in group.skipped])
