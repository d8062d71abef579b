"""The one structure that goes from host to device: G groups of R rows of T slots, each group with its pool of media.

A NamedTuple is a pytree that needs no jax: loader workers build it in numpy and the jitted step takes it unchanged.
Everything discrete (temporal grouping, Dynamic-S2 grids, packing) is decided on the host; shapes are static.

Dimensions: G groups, R rows, T slots, N tiles (and output tiles), W windows, K clips, P tile side, F mel frames per
window, M mel bins, C channels, V vision and A audio tokens in a group's pools, S source tiles per output tile.
"""

from typing import Any, NamedTuple

from jaxtyping import Float, Float32, Int8, Int32, UInt8

TEXT, AUDIO, VISION = 0, 1, 2  # slot kinds


class Batch(NamedTuple):
    """One global batch; the module docstring lists the dimensions.

    tokens: text ids, 0 at media slots.
    slot_kind: TEXT, AUDIO or VISION.
    slot_index: index of the slot's token in the group's pool of that kind; 0 at text.
    positions: RoPE position, restarting with each conversation.
    segment_ids: id of the conversation within the row, from 1; 0 is padding.
    targets: the next token; loss_weights: 0 where not trained.
    sources: index of the source that a slot's conversation comes from, for metrics.
    tiles: RGB pixels, normalised on the device; or features [G, N, patches, C], if the vision tower has run before.
    s2_sources: for each output tile, the tiles that its scales are cut from: the n x n tiles of each scale but the
        largest, row by row, then one tile of the largest scale (S = 1 + 4 + 1 at full size).
    s2_block: (row, rows, column, columns) of the output tile in its image's grid; rows = 0 for a video frame or a
        single tile, whose own features are repeated over the scales.
    frame_groups: for each vision pool, the output tiles that are averaged in time; -1 is padding.
    windows: log-mel; or features [G, W, frames, C], if the sound tower has run before.
    vision_times, audio_times: seconds from the start of the clip; 0 leaves a token unrotated.
    vision_clip, audio_clip: id of the video with sound that a token belongs to, from 1; 0 = none.
    clip_source: hash of each clip's source file, so that two conversations about one video are not each other's
        negatives; 0 where there is no clip.
    vision_angles, audio_angles: rotation angles of the axial and harmonic time schemes, reduced on the host because
        they are too large for float32; None under every other scheme.
    """

    tokens: Int32[Any, "G R T"]
    slot_kind: Int8[Any, "G R T"]
    slot_index: Int32[Any, "G R T"]
    positions: Int32[Any, "G R T"]
    segment_ids: Int32[Any, "G R T"]
    targets: Int32[Any, "G R T"]
    loss_weights: Float32[Any, "G R T"]
    sources: Int32[Any, "G R T"]
    tiles: UInt8[Any, "G N P P 3"] | Float[Any, "G N patches C"]
    s2_sources: Int32[Any, "G N S"]
    s2_block: Int32[Any, "G N 4"]
    frame_groups: tuple[Int32[Any, "G groups time"], ...]
    windows: Float32[Any, "G W F M"] | Float[Any, "G W frames C"]
    vision_times: Float32[Any, "G V"]
    audio_times: Float32[Any, "G A"]
    vision_clip: Int32[Any, "G V"]
    audio_clip: Int32[Any, "G A"]
    clip_source: Int32[Any, "G K"]
    vision_angles: Float32[Any, "G V C"] | None = None
    audio_angles: Float32[Any, "G A C"] | None = None


SLOT_FIELDS = ("tokens", "slot_kind", "slot_index", "positions", "segment_ids", "targets", "loss_weights", "sources")


class Capacity(NamedTuple):
    """What one group holds: rows, slots per row, tiles, windows and clips (media items)."""

    rows: int
    slots: int
    tiles: int
    windows: int
    clips: int
