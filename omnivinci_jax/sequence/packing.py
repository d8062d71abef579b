"""Packing: which conversations share a group, and in which of its rows each stands."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.row import Row


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

    Every sample is in exactly one row, rows hold at most `capacity.slots` slots and groups at most `capacity`'s tiles,
    windows and clips. Each sample must fit alone.

    One row is filled after the other, each pick from all samples that are left: first the one that leaves the least
    of everything (the norm of what remains of slots, tiles, windows and clips, so that none runs out long before the
    others); near the end of the row, the one or two that leave the fewest slots.
    """
    # By length, so that the longest that fits beside another is found by bisection.
    left = np.argsort(sizes[:, 0], kind="stable")
    groups = []
    while len(left):
        pool, rows = np.array(capacity[2:]), []
        for _ in range(capacity.rows):
            row, room = [], np.array([capacity.slots, *pool])
            while len(fitting := np.flatnonzero((sizes[left] <= room).all(axis=1))):
                places = fitting[_next(sizes[left[fitting]], room, capacity)]
                row += left[places].tolist()
                room -= sizes[left[places]].sum(axis=0)
                left = np.delete(left, places)
            pool = room[1:]
            rows.append(row)
        groups.append(rows)
    return groups


def _next(
    sizes: Int64[np.ndarray, "fitting 4"], room: Int64[np.ndarray, " 4"], capacity: Capacity
) -> Int64[np.ndarray, " picks"]:
    """One or two of the samples that fit, by length, into the `room` that a row and its group have left."""
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
