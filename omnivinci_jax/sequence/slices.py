"""A row's media as groups of a few fixed shapes: the towers run in bounded memory and compile once per shape."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.sequence.assemble import PackedRow, Tiles, Windows, assemble, empty_media, pool_capacity
from omnivinci_jax.sequence.batch import Batch, Capacity
from omnivinci_jax.sequence.row import Row

_MIN_TILES = 2


class MediaSlice(NamedTuple):
    """A group with some of a row's tiles or windows.

    tokens: where the row's tokens are among the group's: one slice per vision pool, or one for windows.
    """

    group: Batch
    tokens: tuple[slice, ...]


def tile_counts(config: OmniVinciConfig, multiple: int = 1) -> tuple[int, int]:
    """Returns the tiles of a small slice and of a large one (for any Dynamic-S2 image), both multiples of `multiple`.

    They are also multiples of the temporal pool sizes, so that no slice of a long video ends in a partial pool.
    """
    unit = math.lcm(multiple, *(pool[0] for pool in config.vision_pools))
    largest_image = sum(side**2 for side in config.s2_sides) + config.max_tiles
    small, large = (math.ceil(count / unit) * unit for count in (_MIN_TILES, largest_image))
    return small, large


def vision_slices(
    row: Row, tiles: Tiles, config: OmniVinciConfig, multiple: int = 1, *, small: bool = False
) -> Iterator[MediaSlice]:
    """Slices the row's tiles in order; the tiles of an image and the frames of a pool stay together.

    If `small`, slices are large only for images that need it.
    """
    capacities = [Capacity(1, 1, count, 0, 1) for count in tile_counts(config, multiple)]
    # Columns as in `_cuts`: output tiles (at most one per tile), tiles, frame groups of each pool.
    limits = [np.array([c.tiles, c.tiles, *pool_capacity(config, c)]) for c in capacities]
    cuts, start = _cuts(row), 0
    tokens = np.array([config.pool_tokens(pool) for pool in range(len(config.vision_pools))])
    empty = empty_media(config)._replace(tiles=tiles[:0])
    while start < len(cuts) - 1:
        short, large = (int(np.flatnonzero((cuts - cuts[start] <= room).all(axis=1))[-1]) for room in limits)
        filled = cuts[large, 1] - cuts[start, 1] == capacities[1].tiles
        which, end = (1, large) if (filled and not small) or short == start else (0, short)
        part = _vision_part(row, cuts[start], cuts[end], tokens)
        packed = PackedRow(0, 1, part, tiles[cuts[start, 1] : cuts[end, 1]], empty.windows)
        starts = np.cumsum([0, *limits[which][2:] * tokens])
        counts = (cuts[end] - cuts[start])[2:] * tokens
        spans = (slice(first, first + count) for first, count in zip(starts[:-1], counts, strict=True))
        yield MediaSlice(assemble([packed], config, capacities[which], empty), tuple(spans))
        start = end


def sound_slices(row: Row, windows: Windows, config: OmniVinciConfig, count: int = 1) -> Iterator[MediaSlice]:
    """Slices the row's windows in order, `count` at a time."""
    empty, capacity = empty_media(config)._replace(windows=windows[:0]), Capacity(1, 1, 0, count, 1)
    for first in range(0, row.num_windows, count):
        last = min(first + count, row.num_windows)
        span = slice(first * config.window_tokens, last * config.window_tokens)
        part = dataclasses.replace(
            _without_media(row),
            num_windows=last - first,
            audio_times=row.audio_times[span],
            audio_clip=row.audio_clip[span],
            audio_angles=None if row.audio_angles is None else row.audio_angles[span],
        )
        packed = PackedRow(0, 1, part, empty.tiles, windows[first:last])
        yield MediaSlice(assemble([packed], config, capacity, empty), (slice(0, span.stop - span.start),))


def _cuts(row: Row) -> Int64[np.ndarray, "cuts counts"]:
    """Returns where the row may be cut, as counts before each cut: output tiles, tiles, frame groups of each pool.

    A cut never splits an output tile's sources or a frame group.
    """
    outputs = len(row.s2_sources)
    positions = np.arange(outputs + 1)
    # For each position: the first tile that later outputs need, and one past the last that earlier outputs need.
    needed = np.minimum.accumulate(np.append(row.s2_sources.min(axis=1, initial=row.num_tiles), row.num_tiles)[::-1])
    used = np.maximum.accumulate(np.append(0, row.s2_sources.max(axis=1, initial=-1) + 1))
    allowed, before = used <= needed[::-1], []
    for members in row.frame_groups:
        firsts, lasts = np.where(members < 0, outputs, members).min(axis=1), members.max(axis=1)
        before.append(np.searchsorted(lasts, positions, side="left"))
        allowed &= before[-1] == np.searchsorted(firsts, positions, side="left")
    return np.stack([positions, used, *before], axis=1)[allowed]


def _vision_part(row: Row, start: np.ndarray, end: np.ndarray, tokens: Int64[np.ndarray, " pools"]) -> Row:
    """Returns a row without slots that has the output tiles, tiles and frame groups between two cuts."""
    outputs, groups = slice(start[0], end[0]), [slice(*pair) for pair in zip(start[2:], end[2:], strict=True)]

    def between(columns: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        parts = zip(columns, groups, tokens, strict=True)
        return tuple(column[group.start * count : group.stop * count] for column, group, count in parts)

    return dataclasses.replace(
        _without_media(row),
        num_tiles=int(end[1] - start[1]),
        s2_sources=row.s2_sources[outputs] - np.int32(start[1]),
        s2_block=row.s2_block[outputs],
        frame_groups=tuple(
            np.where(members[group] < 0, np.int32(-1), members[group] - np.int32(start[0]))
            for members, group in zip(row.frame_groups, groups, strict=True)
        ),
        vision_times=between(row.vision_times),
        vision_clip=between(row.vision_clip),
        vision_angles=None if row.vision_angles is None else between(row.vision_angles),
    )


def _without_media(row: Row) -> Row:
    """Returns the row with all slots, tiles, windows and clips removed."""

    def empty(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(empty, value))
        return value[:0] if isinstance(value, np.ndarray) else value

    fields = {field.name: empty(getattr(row, field.name)) for field in dataclasses.fields(row)}
    return Row(**fields | {"num_tiles": 0, "num_windows": 0, "clip_source": ()})
