"""A mixture: several sources read as one, each with its share of the samples, epoch after epoch (paper, Figure 5).

A block's samples are a pure function of (mixture, seed, block index); only the order within each source is random. So
shares are exact, and no sample repeats before all others of its source have been read.
"""

import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int32, Int64

from omnivinci_jax.data.index import Index
from omnivinci_jax.errors import DataError
from omnivinci_jax.sequence.chat import Conversation
from omnivinci_jax.settings import Source

# Samples packed together: enough to fill groups well, few enough to plan an epoch in small parts.
PACKED_TOGETHER, _MIN_BLOCK = 2048, 512


@dataclass(frozen=True)
class Mixture:
    """Weighted sources with their indexes; sample indices count over all sources in order.

    Raises:
        DataError: a source has no usable sample.
    """

    sources: tuple[Source, ...]
    indices: tuple[Index, ...]

    def __post_init__(self):
        for source, index in zip(self.sources, self.indices, strict=True):
            if not len(index):
                listed = "".join(f"\n  {problem}" for problem in index.problems[:20])
                raise DataError(f"{index.path}: no sample of source {source.name!r} can be used:{listed}")

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> Int64[np.ndarray, " starts"]:
        """Index of each source's first sample, then the total number of samples."""
        return np.cumsum([0, *map(len, self.indices)])

    @cached_property
    def shares(self) -> Float64[np.ndarray, " sources"]:
        """Share of each source in the samples."""
        weights = np.array([source.weight for source in self.sources])
        return weights / weights.sum()

    @cached_property
    def sizes(self) -> Int64[np.ndarray, "samples 4"]:
        """See `Index`."""
        return np.concatenate([index.sizes for index in self.indices])

    @cached_property
    def max_frames(self) -> Int32[np.ndarray, " samples"]:
        """See `Index`."""
        return np.concatenate([index.max_frames for index in self.indices])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that determines the order of samples."""
        names = [(source.name, source.weight) for source in self.sources]
        columns = [np.column_stack([index.locations, index.sizes]) for index in self.indices]
        return hashlib.sha256(repr(names).encode() + np.concatenate(columns).tobytes()).hexdigest()

    @property
    def problems(self) -> tuple[str, ...]:
        """See `Index`."""
        return tuple(problem for index in self.indices for problem in index.problems)

    def source_of(self, samples: int | Int64[np.ndarray, " n"]) -> int | Int64[np.ndarray, " n"]:
        """Returns the index of each sample's source."""
        sources = np.searchsorted(self.starts, samples, side="right") - 1
        return int(sources) if isinstance(samples, int) else sources

    def where(self, sample: int) -> str:
        """See `Index`."""
        index, local = self._locate(sample)
        return index.where(local)

    def record(self, sample: int) -> dict:
        """See `Index`."""
        index, local = self._locate(sample)
        return index.record(local)

    def conversation(self, sample: int) -> Conversation:
        """See `Index`."""
        index, local = self._locate(sample)
        return index.conversation(local)

    def _locate(self, sample: int) -> tuple[Index, int]:
        source = self.source_of(sample)
        return self.indices[source], sample - int(self.starts[source])


class Blocks:
    """The samples of a mixture as an endless sequence of blocks, each packed separately."""

    def __init__(self, mixture: Mixture, seed: int):
        self._mixture, self._seed = mixture, seed
        self._orders = {}
        # An epoch of the source that finishes first fills whole blocks, so that no block repeats one of its samples,
        # unless such blocks would be too short.
        epoch = min(len(index) / share for index, share in zip(mixture.indices, mixture.shares, strict=True))
        self._length = max(epoch / np.ceil(epoch / PACKED_TOGETHER), min(_MIN_BLOCK, len(mixture)))

    def __getitem__(self, block: int) -> Int64[np.ndarray, " samples"]:
        """Returns the sample indices of a block: each source's share, rounded, in the source's order."""
        # Both ends round alike, so consecutive blocks neither skip nor repeat a sample.
        ends = (self._mixture.shares * self._length * end for end in (block, block + 1))
        first, last = (np.rint(end).astype(int).tolist() for end in ends)
        return np.concatenate([self._draw(source, first[source], last[source]) for source in range(len(first))])

    def _draw(self, source: int, first: int, last: int) -> Int64[np.ndarray, " n"]:
        """Returns samples `first` to `last` of a source's endless stream of epochs."""
        count, drawn = len(self._mixture.indices[source]), []
        while first < last:
            epoch, start = divmod(first, count)
            end = min(count, start + last - first)
            drawn.append(self._order(source, epoch)[start:end])
            first += end - start
        return np.concatenate([np.zeros(0, int), *drawn]) + self._mixture.starts[source]

    def _order(self, source: int, epoch: int) -> Int64[np.ndarray, " samples"]:
        known = self._orders.get(source)
        if known is None or known[0] != epoch:
            # Seeded by name: adding a source to a mixture does not change the order of the others.
            name = zlib.crc32(self._mixture.sources[source].name.encode())
            random = np.random.default_rng((self._seed, epoch, name))
            known = self._orders[source] = epoch, random.permutation(len(self._mixture.indices[source]))
        return known[1]


def as_mixture(index: Index) -> Mixture:
    """Wraps one file as a mixture."""
    return Mixture((Source("train", str(index.path), "omni"),), (index,))
