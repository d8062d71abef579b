"""Batches from indexed files: planned packs, read by Grain's worker processes.

Group n is a pure function of (mixture, capacity, seed, n), so a position in the data is one integer.
"""

import bisect
import sys
from collections.abc import Generator, Sequence
from typing import NamedTuple

import grain
import jax  # only for jax.tree; Grain imports it in every worker anyway
import numpy as np
from grain.multiprocessing import SharedMemoryArray

from omnivinci_jax.data.index import Index
from omnivinci_jax.data.mixture import PACKED_TOGETHER, Blocks, Mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.worker import live_with_parent
from omnivinci_jax.errors import MediaError, Preempted, describe_at
from omnivinci_jax.sequence.assemble import PackedRow, assemble
from omnivinci_jax.sequence.batch import Batch, Capacity
from omnivinci_jax.sequence.packing import pack, row_size
from omnivinci_jax.settings import DataConfig

NO_LIMIT = Capacity(*[2**31] * 5)
_ENDLESS = 2**40  # steps

# For each group its rows, for each row the indices of its samples.
Planned = list[list[list[int]]]


def plan_all(index: Index, settings: DataConfig) -> Planned:
    """Plans every sample of a file once; empty groups at the end complete the last batch."""
    groups = []
    for start in range(0, len(index), PACKED_TOGETHER):
        part = pack(index.sizes[start : start + PACKED_TOGETHER], settings.capacity)
        groups += [[[start + sample for sample in row] for row in rows] for rows in part]
    return groups + [[] for _ in range(-len(groups) % settings.groups)]


def whole_file(index: Index, rows: int, groups: int = 1, divisor: int = 1, max_skipped: float = 0.01) -> DataConfig:
    """Returns settings under which every sample of a file fits, read in this process.

    Args:
        index: made with NO_LIMIT.
        rows: conversations per group; rows are as long as the longest conversation.
        groups: groups per batch.
        divisor: slots, tiles and windows of a group become multiples of it.
        max_skipped: see DataConfig.
    """
    slots, tiles, windows, clips = (int(largest) for largest in index.sizes.max(axis=0))
    slots, tiles, windows = (-(-max(n, 1) // divisor) * divisor for n in (slots, rows * tiles, rows * windows))
    capacity = Capacity(rows, slots, tiles, windows, max(rows * clips, 1))
    return DataConfig(capacity=capacity, groups=groups, workers=0, max_skipped=max_skipped)


class Plan:
    """The samples of every group of an endless run: the mixture block by block, each block packed and shuffled.

    The index of a block's first group depends on packing all blocks before it. To skip them, give `start`: a block
    and the index of its first group, as returned by an earlier plan's `block_of`. Earlier groups are then unavailable.
    """

    def __init__(self, mixture: Mixture, capacity: Capacity, seed: int, start: tuple[int, int] = (0, 0)):
        self._sizes, self._capacity, self._seed = mixture.sizes, capacity, seed
        self._blocks = Blocks(mixture, seed)
        self._start_block, first = start
        self._first_groups = [first]  # of each block from the start block on, and of the next one
        self._packed: dict[int, Planned] = {}

    def __getitem__(self, group: int) -> list[list[int]]:
        """Returns the rows of a group, each a list of sample indices."""
        block, first = self.block_of(group)
        return self._groups(block)[group - first]

    def block_of(self, group: int) -> tuple[int, int]:
        """Returns the block that contains a group, and the index of the block's first group."""
        while group >= self._first_groups[-1]:
            block = self._start_block + len(self._first_groups) - 1
            self._first_groups.append(self._first_groups[-1] + len(self._groups(block)))
        offset = bisect.bisect(self._first_groups, group) - 1
        return self._start_block + offset, self._first_groups[offset]

    def _groups(self, block: int) -> Planned:
        if block not in self._packed:
            if len(self._packed) > 2:  # reads move forward, and look back a step or two
                del self._packed[min(self._packed)]
            samples = self._blocks[block]
            groups = pack(self._sizes[samples], self._capacity)
            order = np.random.default_rng((self._seed, block)).permutation(len(groups))
            self._packed[block] = [[samples[row].tolist() for row in groups[group]] for group in order]
        return self._packed[block]


class Loaded(NamedTuple):
    """A batch, and the error of each sample that could not be read, by sample index."""

    batch: Batch
    skipped: dict[int, str]


class Groups(grain.sources.RandomAccessDataSource):
    """The groups that one process loads, step after step, decoded and assembled.

    Segment n of a row is its n-th sample in the plan; a sample that cannot be read becomes masked padding.
    """

    def __init__(
        self,
        index: Index | Mixture,
        plan: Plan | Planned,
        processor: Processor,
        settings: DataConfig,
        local_groups: list[int],
        steps: int,
    ):
        self._index, self._plan, self._processor, self._settings = index, plan, processor, settings
        self._local_groups, self._steps = local_groups, steps

    def __len__(self) -> int:
        return self._steps * len(self._local_groups)

    def __getitem__(self, index: int) -> Loaded:
        step, offset = divmod(index, len(self._local_groups))
        packed, skipped = [], {}
        for row, samples in enumerate(self._plan[step * self._settings.groups + self._local_groups[offset]]):
            for segment, sample in enumerate(samples, start=1):
                try:
                    packed.append(self._load(sample, row, segment))
                except Exception as error:  # whatever one sample raises leaves out only that sample
                    skipped[sample] = describe_at(self._index.where(sample), error)
        return Loaded(assemble(packed, self._processor.config, self._settings.capacity), skipped)

    def _load(self, sample: int, row_index: int, segment: int) -> PackedRow:
        conversation = self._processor.select(self._index.conversation(sample))
        sizes, tiles, windows = self._processor.load(conversation, int(self._index.max_frames[sample]) or None)
        row = self._processor.lay_out(conversation, sizes)
        if row_size(row, len(conversation.media)) != tuple(self._index.sizes[sample]):
            names = ", ".join(item.path for item in conversation.media)
            raise MediaError(f"{names}: changed since it was indexed; delete the folder 'index' in config.data.cache")
        return PackedRow(row_index, segment, row, tiles, windows, int(self._index.source_of(sample)))


def read_batches(
    index: Index | Mixture,
    plan: Plan | Planned,
    processor: Processor,
    settings: DataConfig,
    local_groups: list[int],
    *,
    start: int,
    stop: int | None,
) -> Generator[Loaded, None, None]:
    """Yields the batches of steps `start` to `stop` (None: endless), with the groups that this process loads.

    Raises:
        Preempted: a worker was killed, for example because memory ran out.
    """
    source = Groups(index, plan, processor, settings, local_groups, _ENDLESS if stop is None else stop)
    dataset = grain.MapDataset.source(source)[start * len(local_groups) :].batch(len(local_groups), batch_fn=_stack)
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
            "a loader worker was killed, perhaps out of memory (lower config.data.workers); run the same command again "
            "to resume from the last checkpoint"
        ) from None
    finally:
        batches.close()
        unlinking = SharedMemoryArray._del_thread_pool
        if unlinking and not sys.is_finalizing():  # wait for the thread that unlinks prefetched batches
            unlinking.apply_async(bool).wait(timeout=10)


def _unlink(leaf: object) -> object:
    """Unlinks the shared memory of a worker's array, which stays mapped; returns other leaves unchanged.

    Grain unlinks when the array is deleted, but JAX may keep the last arrays until the process exits.
    """
    if isinstance(leaf, SharedMemoryArray) and leaf.shm:
        leaf.shm.unlink()
        leaf._unlink_on_del = False
    return leaf


def _live_with_parent(_worker: int, _workers: int) -> None:
    live_with_parent()


def _stack(loaded: Sequence[Loaded]) -> Loaded:
    batch = jax.tree.map(lambda *arrays: np.stack(arrays), *(group.batch for group in loaded))
    return Loaded(batch, {sample: error for group in loaded for sample, error in group.skipped.items()})
