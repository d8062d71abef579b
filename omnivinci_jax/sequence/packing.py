"""Packing: assigns conversations to groups and to rows within a group."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.row import Row


class RowSize(NamedTuple):
    """How much of a group's Capacity one conversation uses."""

    slots: int
    tiles: int
    windows: int
    clips: int


def row_size(row: Row, num_media: int) -> RowSize:
    """Returns the size of a laid-out row; every media item counts as a clip, which also bounds the frame groups."""
    return RowSize(len(row), row.num_tiles, row.num_windows, num_media)


def fits(size: RowSize, capacity: Capacity) -> bool:
    """Returns whether a conversation fits into an empty group."""
    return all(used <= room for used, room in zip(size, capacity[1:], strict=True))


def pack(sizes: Int64[np.ndarray, "samples 4"], capacity: Capacity) -> list[list[list[int]]]:
    """Packs samples into groups: for each group its rows, for each row the indices of its samples in `sizes`.

    Every sample is in exactly one row; rows hold at most `capacity.slots` slots and groups at most `capacity`'s tiles,
    windows and clips. Each sample must fit into an empty group.

    Fills the rows one by one, greedily from all remaining samples: first the sample that leaves the smallest norm of
    free slots, tiles, windows and clips, so that none of them runs out early; near the end of the row, the one or two
    samples that leave the fewest slots.
    """
    # Sorted by length, so that bisection finds the longest sample that fits beside another.
    remaining = np.argsort(sizes[:, 0], kind="stable")
    groups = []
    while len(remaining):
        pool, rows = np.array(capacity[2:]), []
        for _ in range(capacity.rows):
            row, room = [], np.array([capacity.slots, *pool])
            while len(fitting := np.flatnonzero((sizes[remaining] <= room).all(axis=1))):
                chosen = fitting[_pick(sizes[remaining[fitting]], room, capacity)]
                row += remaining[chosen].tolist()
                room -= sizes[remaining[chosen]].sum(axis=0)
                remaining = np.delete(remaining, chosen)
            pool = room[1:]
            rows.append(row)
        groups.append(rows)
    return groups


def _pick(
    sizes: Int64[np.ndarray, "fitting 4"], room: Int64[np.ndarray, " 4"], capacity: Capacity
) -> Int64[np.ndarray, " picks"]:
    """Picks one or two of the fitting samples (sorted by length) for the `room` that a row and its group have left."""
    slots = sizes[:, 0]
    if room[0] > 2 * slots[-1]:
        remains = (room - sizes) / np.maximum(capacity[1:], 1)
        return np.array([np.square(remains).sum(axis=1).argmin()])
    first = np.arange(len(slots))
    second = np.searchsorted(slots, room[0] - slots, side="right") - 1
    second -= second == first
    pairs = sizes + sizes[second]
    unfit = (second < 0) | (pairs > room).any(axis=1)
    best = np.where(unfit, 0, pairs[:, 0]).argmax()
    return np.array([len(slots) - 1]) if unfit[best] or pairs[best, 0] < slots[-1] else np.array([best, second[best]])
