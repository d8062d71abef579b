"""A row's media in groups of a few shapes, so that the towers run in bounded memory and are compiled once a shape."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.sequence.assemble import PackedRow, assemble, pool_capacity
from omnivinci_jax.sequence.batch import Batch, Capacity
from omnivinci_jax.sequence.row import Row

_FEWEST_TILES = 2


class MediaSlice(NamedTuple):
    """A group with some of a row's tiles, or of its windows, and where the row's tokens are among the group's.

    tokens: a range for each vision pool; for windows, one.
    """

    group: Batch
    tokens: tuple[slice, ...]


def tile_counts(config: OmniVinciConfig, multiple: int = 1) -> tuple[int, int]:
    """Tiles of a small slice and of a large one, which holds any Dynamic-S2 image; both are multiples of `multiple`.

    They are whole pools in time, so that no slice of a long video ends in a pool that is not full.
    """
    unit = math.lcm(multiple, *(pool[0] for pool in config.vision_pools))
    largest_image = sum(side**2 for side in config.s2_sides) + config.max_tiles
    small, large = (math.ceil(count / unit) * unit for count in (_FEWEST_TILES, largest_image))
    return small, large


def vision_slices(
    row: Row, tiles: UInt8[np.ndarray, "n P P 3"], config: OmniVinciConfig, multiple: int = 1
) -> Iterator[MediaSlice]:
    """The row's tiles in their order; no slice cuts the tiles of an image or the frames of a pool apart."""
    capacities = [Capacity(1, 1, count, 0, 1) for count in tile_counts(config, multiple)]
    # As in a cut: output tiles (at most one a tile), tiles, frame groups of each pool.
    rooms = [np.array([c.tiles, c.tiles, *pool_capacity(config, c)]) for c in capacities]
    cuts, here = _cuts(row), 0
    tokens = np.array([config.pool_tokens(pool) for pool in range(len(config.vision_pools))])
    no_windows = np.zeros((0, config.audio.window_frames, config.audio.num_mel_bins), np.float32)
    while here < len(cuts) - 1:
        small, large = (int(np.flatnonzero((cuts - cuts[here] <= room).all(axis=1))[-1]) for room in rooms)
        filled = cuts[large, 1] - cuts[here, 1] == capacities[1].tiles
        which, end = (1, large) if filled or small == here else (0, small)
        part = _vision_part(row, cuts[here], cuts[end], tokens)
        packed = PackedRow(0, 1, part, tiles[cuts[here, 1] : cuts[end, 1]], no_windows)
        starts = np.cumsum([0, *rooms[which][2:] * tokens])
        counts = (cuts[end] - cuts[here])[2:] * tokens
        spans = (slice(start, start + count) for start, count in zip(starts[:-1], counts, strict=True))
        yield MediaSlice(assemble([packed], config, capacities[which]), tuple(spans))
        here = end


def sound_slices(
    row: Row, windows: Float32[np.ndarray, "w F M"], config: OmniVinciConfig, count: int = 1
) -> Iterator[MediaSlice]:
    """The row's windows in their order, `count` at a time."""
    side = config.vision.image_size
    no_tiles = np.zeros((0, side, side, 3), np.uint8)
    for first in range(0, row.num_windows, count):
        last = min(first + count, row.num_windows)
        held = slice(first * config.window_tokens, last * config.window_tokens)
        part = dataclasses.replace(
            _without_media(row),
            num_windows=last - first,
            audio_times=row.audio_times[held],
            audio_clip=row.audio_clip[held],
            audio_angles=None if row.audio_angles is None else row.audio_angles[held],
        )
        packed = PackedRow(0, 1, part, no_tiles, windows[first:last])
        yield MediaSlice(assemble([packed], config, Capacity(1, 1, 0, count, 1)), (slice(0, held.stop - held.start),))


def _cuts(row: Row) -> Int64[np.ndarray, "cuts counts"]:
    """Where the row may be cut: at each place, how many output tiles, tiles and frame groups of each pool are before.

    A cut leaves no output tile's sources and no frame group on both sides.
    """
    outputs = len(row.s2_sources)
    places = np.arange(outputs + 1)
    # The first tile that the outputs from each place on need, and one past the last that those before it need.
    needed = np.minimum.accumulate(np.append(row.s2_sources.min(axis=1, initial=row.num_tiles), row.num_tiles)[::-1])
    used = np.maximum.accumulate(np.append(0, row.s2_sources.max(axis=1, initial=-1) + 1))
    allowed, before = used <= needed[::-1], []
    for members in row.frame_groups:
        firsts, lasts = np.where(members < 0, outputs, members).min(axis=1), members.max(axis=1)
        before.append(np.searchsorted(lasts, places, side="left"))
        allowed &= before[-1] == np.searchsorted(firsts, places, side="left")
    return np.stack([places, used, *before], axis=1)[allowed]


def _vision_part(row: Row, start: np.ndarray, end: np.ndarray, tokens: Int64[np.ndarray, " pools"]) -> Row:
    """A row of no slots with the output tiles, tiles and frame groups between two cuts."""
    outputs, groups = slice(start[0], end[0]), [slice(*pair) for pair in zip(start[2:], end[2:], strict=True)]

    def held(columns: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
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
        vision_times=held(row.vision_times),
        vision_clip=held(row.vision_clip),
        vision_angles=None if row.vision_angles is None else held(row.vision_angles),
    )


def _without_media(row: Row) -> Row:
    """The row without slots, tiles, windows and clips."""

    def emptied(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(emptied, value))
        return value[:0] if isinstance(value, np.ndarray) else value

    fields = {field.name: emptied(getattr(row, field.name)) for field in dataclasses.fields(row)}
    return Row(**fields | {"num_tiles": 0, "num_windows": 0, "clip_source": ()})
