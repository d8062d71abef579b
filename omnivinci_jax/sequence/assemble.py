"""Assembles packed rows and their media into one group's arrays (a Batch without its leading axis)."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from omnivinci_jax.config import OmniVinciConfig, TimeEmbeddingConfig
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.sequence.batch import TEXT, VISION, Batch, Capacity
from omnivinci_jax.sequence.row import Row

# Raw, or what an encoder makes of them (see `Batch`).
Tiles = UInt8[np.ndarray, "n P P 3"] | Float[np.ndarray, "n patches C"]
Windows = Float32[np.ndarray, "w F M"] | Float[np.ndarray, "w frames C"]


class EmptyMedia(NamedTuple):
    """No tiles and no windows: empty arrays with the shape and the type of a group's."""

    tiles: Tiles
    windows: Windows


class PackedRow(NamedTuple):
    """A laid-out conversation with its media and its position in a group.

    row_index: row of the group.
    segment: id within that row, from 1.
    source: index of the source that it comes from.
    shares_media: it has the media of the item before it, which the group then holds only once.
    """

    row_index: int
    segment: int
    row: Row
    tiles: Tiles
    windows: Windows
    source: int = 0
    shares_media: bool = False


def pool_capacity(config: OmniVinciConfig, capacity: Capacity) -> tuple[int, ...]:
    """Returns the frame groups of each vision pool: the most that `tiles` tiles in at most `clips` clips can need."""
    return tuple(math.ceil(capacity.tiles / pool[0]) + capacity.clips * (pool[0] > 1) for pool in config.vision_pools)


def empty_media(
    config: OmniVinciConfig, tile_features: np.dtype | None = None, window_features: np.dtype | None = None
) -> EmptyMedia:
    """Returns raw media, or the encoders' features where a type of them is given."""
    vision, audio = config.vision, config.audio
    tile, window = (vision.image_size, vision.image_size, 3), (audio.window_frames, audio.num_mel_bins)
    if tile_features is not None:
        tile = vision.grid**2, vision.hidden_size
    if window_features is not None:
        window = audio.max_source_positions // 2, audio.d_model
    return EmptyMedia(
        np.zeros((0, *tile), tile_features or np.uint8), np.zeros((0, *window), window_features or np.float32)
    )


def empty_group(config: OmniVinciConfig, capacity: Capacity, media: EmptyMedia | None = None) -> Batch:
    """Returns a group of padding, with the shapes of every group of this capacity; its media are raw by default."""
    media = media or empty_media(config)
    rows, tiles, windows = (capacity.rows, capacity.slots), capacity.tiles, capacity.windows
    groups = pool_capacity(config, capacity)
    vision = sum(count * config.pool_tokens(pool) for pool, count in enumerate(groups))
    audio = windows * config.window_tokens
    return Batch(
        tokens=np.zeros(rows, np.int32),
        slot_kind=np.full(rows, TEXT, np.int8),
        slot_index=np.zeros(rows, np.int32),
        positions=np.zeros(rows, np.int32),
        segment_ids=np.zeros(rows, np.int32),
        targets=np.zeros(rows, np.int32),
        loss_weights=np.zeros(rows, np.float32),
        sources=np.zeros(rows, np.int32),
        tiles=np.zeros((tiles, *media.tiles.shape[1:]), media.tiles.dtype),
        s2_sources=np.zeros((tiles, sum(s * s for s in config.s2_sides) + 1), np.int32),
        s2_block=np.zeros((tiles, 4), np.int32),
        frame_groups=tuple(
            np.full((count, pool[0]), -1, np.int32) for count, pool in zip(groups, config.vision_pools, strict=True)
        ),
        windows=np.zeros((windows, *media.windows.shape[1:]), media.windows.dtype),
        vision_times=np.zeros(vision, np.float32),
        audio_times=np.zeros(audio, np.float32),
        vision_clip=np.zeros(vision, np.int32),
        audio_clip=np.zeros(audio, np.int32),
        clip_source=np.zeros(capacity.clips, np.int32),
        vision_angles=_empty_angles(vision, config.video_time),
        audio_angles=_empty_angles(audio, config.sound_time),
    )


def _empty_angles(tokens: int, time: TimeEmbeddingConfig) -> np.ndarray | None:
    return np.zeros((tokens, time.channels), np.float32) if time.host_angles else None


def assemble(
    packed: list[PackedRow], config: OmniVinciConfig, capacity: Capacity, media: EmptyMedia | None = None
) -> Batch:
    """Fills one group, as `empty_group` makes it; conversations with the same `row_index` follow each other there."""
    group = empty_group(config, capacity, media)
    pool_bases = np.cumsum([0] + [n * config.pool_tokens(p) for p, n in enumerate(pool_capacity(config, capacity))])
    used_slots = np.zeros(capacity.rows, int)
    tiles = outputs = windows = clips = 0
    used_groups = [0] * len(config.vision_pools)
    vision_starts, starts = [], np.zeros(0, np.int32)
    for item in packed:
        row, row_index = item.row, item.row_index
        slots = slice(used_slots[row_index], used_slots[row_index] + len(row))
        used_slots[row_index] = slots.stop

        if not item.shares_media:
            # Where this row's tokens start in each of the group's pools.
            vision_starts = [
                base + used * config.pool_tokens(pool)
                for pool, (base, used) in enumerate(zip(pool_bases[:-1], used_groups, strict=True))
            ]
            starts = np.array([0, windows * config.window_tokens, *vision_starts], np.int32)
        group.tokens[row_index, slots] = row.tokens
        group.slot_kind[row_index, slots] = np.minimum(row.slot_kind, VISION)
        group.slot_index[row_index, slots] = row.slot_index + starts[row.slot_kind]
        group.positions[row_index, slots] = np.arange(len(row))
        group.segment_ids[row_index, slots] = item.segment
        group.sources[row_index, slots] = item.source
        predicted = slice(slots.start, slots.stop - 1)
        group.targets[row_index, predicted] = np.where(row.trained, row.tokens, 0)[1:]
        group.loss_weights[row_index, predicted] = row.trained[1:]
        if item.shares_media:
            continue

        group.tiles[tiles : tiles + row.num_tiles] = item.tiles
        ends = slice(outputs, outputs + len(row.s2_sources))
        group.s2_sources[ends] = row.s2_sources + tiles
        group.s2_block[ends] = row.s2_block
        for pool, members in enumerate(row.frame_groups):
            span = slice(used_groups[pool], used_groups[pool] + len(members))
            group.frame_groups[pool][span] = np.where(members < 0, -1, members + outputs)
            used_groups[pool] = span.stop
            span = slice(vision_starts[pool], vision_starts[pool] + len(row.vision_times[pool]))
            group.vision_times[span] = row.vision_times[pool]
            group.vision_clip[span] = np.where(row.vision_clip[pool] > 0, row.vision_clip[pool] + clips, 0)
            if row.vision_angles is not None and group.vision_angles is not None:
                group.vision_angles[span] = row.vision_angles[pool]

        group.windows[windows : windows + row.num_windows] = item.windows
        span = slice(starts[1], starts[1] + len(row.audio_times))
        group.audio_times[span] = row.audio_times
        group.audio_clip[span] = np.where(row.audio_clip > 0, row.audio_clip + clips, 0)
        if row.audio_angles is not None and group.audio_angles is not None:
            group.audio_angles[span] = row.audio_angles
        group.clip_source[clips : clips + len(row.clip_source)] = row.clip_source

        tiles += row.num_tiles
        outputs = ends.stop
        windows += row.num_windows
        clips += len(row.clip_source)
    return group


def check_capacity(capacity: Capacity, config: OmniVinciConfig) -> None:
    """Raises ConfigError if no group can have this capacity, or if its rows are longer than the model can read."""
    for name, value in capacity._asdict().items():
        if value < 1:
            raise ConfigError(f"data.capacity.{name} is {value}: a group needs at least 1")
    if capacity.slots > config.text.max_position_embeddings:
        raise ConfigError(
            f"data.capacity.slots is {capacity.slots}: the decoder supports at most "
            f"{config.text.max_position_embeddings} positions"
        )
