"""Packing: which conversations share a group, and in which of its rows each stands."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.row import Row

# How many groups are open at once: more pack tighter, and cost time only while planning.
_OPEN_GROUPS = 32


class RowSize(NamedTuple):
    """What one conversation takes of a group's Capacity."""

    slots: int
    tiles: int
    windows: int
    clips: int


def row_size(row: Row, num_media: int) -> RowSize:
    """Size of a laid-out row; every media item counts as a clip, which bounds the frame groups as well."""
    return RowSize(len(row), row.num_tiles, row.num_windows, num_media)


def fits(size: RowSize, capacity: Capacity) -> bool:
    """Whether a conversation fits into an empty group."""
    return all(taken <= room for taken, room in zip(size, capacity[1:], strict=True))


def pack(sizes: Int64[np.ndarray, "samples 4"], capacity: Capacity) -> list[list[list[int]]]:
    """Packs samples into groups: for each group its rows, for each row the positions of its samples in `sizes`.

    Longest first, best fit over the open groups: every sample is in exactly one row, rows hold at most
    `capacity.slots` slots and groups at most `capacity`'s tiles, windows and clips. Each sample must fit alone.
    """
    groups, open_groups = [], []
    for sample in np.argsort(-sizes[:, 0], kind="stable"):
        slots, pool = int(sizes[sample, 0]), sizes[sample, 1:]
        best = None
        for group in open_groups:
            if (pool > group.pool).any():
                continue
            row = min(
                (r for r, room in enumerate(group.room) if room >= slots), key=group.room.__getitem__, default=None
            )
            if row is not None and (best is None or group.room[row] < best[0].room[best[1]]):
                best = group, row
        if best is None:
            if len(open_groups) == _OPEN_GROUPS:
                open_groups.remove(min(open_groups, key=lambda group: sum(group.room)))
            group = _Group(capacity)
            groups.append(group)
            open_groups.append(group)
            best = group, 0
        group, row = best
        group.rows[row].append(int(sample))
        group.room[row] -= slots
        group.pool = group.pool - pool
    return [group.rows for group in groups]


class _Group:
    def __init__(self, capacity: Capacity):
        self.rows = [[] for _ in range(capacity.rows)]
        self.room = [capacity.slots] * capacity.rows
        self.pool = np.array(capacity[2:])
