"""Batches from indexed files: planned packs, read by Grain's worker processes.

What group number n holds is a pure function of (mixture, capacity, seed, n), so a place in the data is an integer.
"""

import bisect
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import jax  # for its trees alone; Grain imports it in every worker anyway
import numpy as np
from grain.multiprocessing import SharedMemoryArray

from omnivinci_jax.data.index import Index
from omnivinci_jax.data.mixture import PACKED_TOGETHER, Blocks, Mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.errors import MediaError, Preempted, UserError
from omnivinci_jax.sequence.assemble import PackedRow, assemble
from omnivinci_jax.sequence.batch import Batch, Capacity
from omnivinci_jax.sequence.packing import pack, row_size
from omnivinci_jax.settings import DataConfig

_ENDLESS = 2**40  # steps

# For each group its rows, for each row the numbers of its samples.
Planned = list[list[list[int]]]


def plan_all(index: Index, settings: DataConfig) -> Planned:
    """Every sample of a file once, with empty groups at the end up to whole batches."""
    groups = []
    for start in range(0, len(index), PACKED_TOGETHER):
        part = pack(index.sizes[start : start + PACKED_TOGETHER], settings.capacity)
        groups += [[[start + sample for sample in row] for row in rows] for rows in part]
    return groups + [[] for _ in range(-len(groups) % settings.groups)]


class Plan:
    """Which samples each group holds, endlessly: block after block of a mixture, each packed and shuffled.

    How many groups come before a block, only packing all of them tells. `begin` saves that: a block, and the number of
    its first group, as `block_of` of an earlier plan named them. What comes before it is not to be asked for.
    """

    def __init__(self, mixture: Mixture, capacity: Capacity, seed: int, begin: tuple[int, int] = (0, 0)):
        self._sizes, self._capacity, self._seed = mixture.sizes, capacity, seed
        self._blocks = Blocks(mixture, seed)
        self._begin, first = begin
        self._firsts = [first]  # groups that blocks begin with, of those from `begin` on and of the next
        self._packed: dict[int, Planned] = {}

    def __getitem__(self, number: int) -> list[list[int]]:
        """Rows of group `number`, each a list of sample numbers."""
        block, first = self.block_of(number)
        return self._groups(block)[number - first]

    def block_of(self, number: int) -> tuple[int, int]:
        """The block that holds group `number`, and its first group."""
        while number >= self._firsts[-1]:
            self._firsts.append(self._firsts[-1] + len(self._groups(self._begin + len(self._firsts) - 1)))
        place = bisect.bisect(self._firsts, number) - 1
        return self._begin + place, self._firsts[place]

    def _groups(self, number: int) -> Planned:
        if number not in self._packed:
            if len(self._packed) > 2:  # reading goes forward, and looks back a step or two
                del self._packed[min(self._packed)]
            block = self._blocks[number]
            groups = pack(self._sizes[block], self._capacity)
            order = np.random.default_rng((self._seed, number)).permutation(len(groups))
            self._packed[number] = [[block[row].tolist() for row in groups[group]] for group in order]
        return self._packed[number]


class Loaded(NamedTuple):
    """A batch, and why each sample that could not be read could not, by its number."""

    batch: Batch
    skipped: dict[int, str]


class Groups(grain.sources.RandomAccessDataSource):
    """The groups that one process loads, step after step, decoded and assembled.

    Segment n of a row is its n-th sample in the plan; one that cannot be read leaves masked padding.
    """

    def __init__(
        self,
        index: Index | Mixture,
        plan: Plan | Planned,
        processor: Processor,
        settings: DataConfig,
        own: list[int],
        steps: int,
    ):
        self._index, self._plan, self._processor, self._settings = index, plan, processor, settings
        self._own, self._steps = own, steps

    def __len__(self) -> int:
        return self._steps * len(self._own)

    def __getitem__(self, number: int) -> Loaded:
        step, place = divmod(number, len(self._own))
        packed, skipped = [], {}
        for row, samples in enumerate(self._plan[step * self._settings.groups + self._own[place]]):
            for segment, sample in enumerate(samples, start=1):
                try:
                    packed.append(self._load(sample, row, segment))
                except UserError as error:
                    skipped[sample] = f"{self._index.where(sample)}: {error}"
        return Loaded(assemble(packed, self._processor.config, self._settings.capacity), skipped)

    def _load(self, sample: int, place: int, segment: int) -> PackedRow:
        conversation = self._processor.select(self._index.conversation(sample))
        sizes, tiles, windows = self._processor.load(conversation, int(self._index.max_frames[sample]) or None)
        row = self._processor.lay_out(conversation, sizes)
        if row_size(row, len(conversation.media)) != tuple(self._index.sizes[sample]):
            names = ", ".join(item.path for item in conversation.media)
            raise MediaError(f"{names}: changed since it was indexed; delete the folder index in config.data.cache")
        return PackedRow(row_index, segment, row, tiles, windows, int(self._index.source_of(sample)))


def read_batches(
    index: Index | Mixture,
    plan: Plan | Planned,
    processor: Processor,
    settings: DataConfig,
    own: list[int],
    *,
    start: int,
    stop: int | None,
) -> Iterator[Loaded]:
    """Batches of the steps `start` to `stop` (None for no end): of their groups those that this process loads (`own`).

    Raises:
        Preempted: a worker ended, killed for its memory for instance.
    """
    source = Groups(index, plan, processor, settings, own, _ENDLESS if stop is None else stop)
    dataset = grain.MapDataset.source(source)[start * len(own) :].batch(len(own), batch_fn=_stack)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    if settings.workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=settings.workers), _live_with_parent)
    batches = iter(dataset)
    try:
        for loaded in batches:
            yield jax.tree.map(_unlink, loaded)
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise Preempted(
            "a loader worker was killed, for its memory perhaps (lower config.data.workers); the same command goes on "
            "from the last save"
        ) from None
    finally:
        batches.close()
        unlinking = SharedMemoryArray._del_thread_pool
        if unlinking and not sys.is_finalizing():  # its one thread unlinks what was read ahead, if it still runs
            unlinking.apply_async(bool).wait(timeout=10)


def _unlink(leaf: object) -> object:
    """Unlinks the shared memory of an array that a worker sent; the array keeps it mapped. Other leaves stay.

    Grain unlinks when the array is deleted. JAX may hold the last arrays until the process ends, too late for that.
    """
    if isinstance(leaf, SharedMemoryArray):
        leaf.shm.unlink()
        leaf._unlink_on_del = False
    return leaf


def _live_with_parent(worker: int, workers: int) -> None:
    """Lets a worker live as long as the training process, which alone answers SIGTERM and may need it for a step more.

    Ends it when that process is gone: one that was killed cannot tell its workers.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _stack(loaded: Sequence[Loaded]) -> Loaded:
    batch = jax.tree.map(lambda *arrays: np.stack(arrays), *(group.batch for group in loaded))
    return Loaded(batch, {sample: why for group in loaded for sample, why in group.skipped.items()})
