"""A mixture: several data sets read as one, each with its part of the samples, epoch after epoch (paper, Figure 5).

Which samples a block holds is a pure function of (mixture, seed, block number); nothing is drawn by chance but each
source's own order. So shares are exact, and no sample comes again before all others of its source have come.
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

# Samples that are packed together: enough to fill groups well, few enough to plan any epoch piece by piece.
PACKED_TOGETHER, _LEAST = 2048, 512


@dataclass(frozen=True)
class Mixture:
    """The indices of some sources with weights; samples are numbered through them, source after source.

    Raises:
        DataError: a source without a sample that can be used.
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
        """Number of the first sample of each source, and of all samples."""
        return np.cumsum([0, *map(len, self.indices)])

    @cached_property
    def shares(self) -> Float64[np.ndarray, " sources"]:
        """Part of each source in the samples."""
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
        """Of all that the order of samples depends on."""
        names = [(source.name, source.weight) for source in self.sources]
        places = [np.column_stack([index.places, index.sizes]) for index in self.indices]
        return hashlib.sha256(repr(names).encode() + np.concatenate(places).tobytes()).hexdigest()

    @property
    def problems(self) -> tuple[str, ...]:
        """See `Index`."""
        return tuple(problem for index in self.indices for problem in index.problems)

    def source_of(self, samples: int | Int64[np.ndarray, " n"]) -> int | Int64[np.ndarray, " n"]:
        """Numbers of the sources that samples are of."""
        sources = np.searchsorted(self.starts, samples, side="right") - 1
        return int(sources) if isinstance(samples, int) else sources

    def where(self, sample: int) -> str:
        """See `Index`."""
        index, own = self._own(sample)
        return index.where(own)

    def conversation(self, sample: int) -> Conversation:
        """See `Index`."""
        index, own = self._own(sample)
        return index.conversation(own)

    def _own(self, sample: int) -> tuple[Index, int]:
        number = self.source_of(sample)
        return self.indices[number], sample - int(self.starts[number])


class Blocks:
    """The samples of a mixture as an endless row of blocks, each to be packed by itself."""

    def __init__(self, mixture: Mixture, seed: int):
        self._mixture, self._seed = mixture, seed
        self._orders = {}
        # The source that is through first fills whole blocks with each epoch, so that no block has one of its samples
        # twice, unless such blocks would be too short.
        epoch = min(len(index) / share for index, share in zip(mixture.indices, mixture.shares, strict=True))
        self._length = max(epoch / np.ceil(epoch / PACKED_TOGETHER), min(_LEAST, len(mixture)))

    def __getitem__(self, number: int) -> Int64[np.ndarray, " samples"]:
        """Numbers of the samples of a block: of each source those that keep its share, rounded, in its own order."""
        # The same rounding at both ends: what one block leaves, the next has.
        ends = (self._mixture.shares * self._length * block for block in (number, number + 1))
        first, last = (np.rint(end).astype(int).tolist() for end in ends)
        return np.concatenate([self._draw(source, first[source], last[source]) for source in range(len(first))])

    def _draw(self, source: int, first: int, last: int) -> Int64[np.ndarray, " n"]:
        """Samples `first` to `last` of a source's endless stream of epochs."""
        count, drawn = len(self._mixture.indices[source]), []
        while first < last:
            epoch, place = divmod(first, count)
            end = min(count, place + last - first)
            drawn.append(self._order(source, epoch)[place:end])
            first += end - place
        return np.concatenate([np.zeros(0, int), *drawn]) + self._mixture.starts[source]

    def _order(self, source: int, epoch: int) -> Int64[np.ndarray, " samples"]:
        known = self._orders.get(source)
        if known is None or known[0] != epoch:
            # By name: what is added to a mixture leaves the order of the others as it is.
            name = zlib.crc32(self._mixture.sources[source].name.encode())
            random = np.random.default_rng((self._seed, epoch, name))
            known = self._orders[source] = epoch, random.permutation(len(self._mixture.indices[source]))
        return known[1]


def alone(index: Index) -> Mixture:
    """A mixture of one file."""
    return Mixture((Source("train", str(index.path), "omni"),), (index,))
