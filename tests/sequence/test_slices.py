"""Slices of a row's media contain the row's media in order, for all pool sizes."""

import dataclasses

import numpy as np
import pytest

from omnivinci_jax.sequence.chat import Conversation, Media, Message
from omnivinci_jax.sequence.row import ImageSize, SoundSize, VideoSize, lay_out
from omnivinci_jax.sequence.slices import sound_slices, tile_counts, vision_slices
from tests.tiny import tiny_config, tiny_tokenizer

POOLS = {"frames": ((1, 1, 1),), "pairs": ((2, 1, 1),), "two pools": ((4, 1, 1), (2, 1, 1))}


def row_of(config, sizes):
    kinds = {ImageSize: "image", SoundSize: "sound", VideoSize: "video"}
    media = tuple(Media(kinds[type(size)], f"{number}") for number, size in enumerate(sizes))
    return lay_out(Conversation((Message("user", media),)), sizes, config, tiny_tokenizer())


def video(frames: int, windows: int = 0) -> VideoSize:
    times = tuple(0.5 * number for number in range(frames))
    return VideoSize(tuple(range(frames)), times, 0.5 * frames, SoundSize(0.5 * frames, windows) if windows else None)


@pytest.mark.parametrize("pools", POOLS)
@pytest.mark.parametrize(
    "sizes",
    [
        [video(1)],
        [video(37, 4)],
        [ImageSize(3, 4)],
        [ImageSize(), ImageSize(), video(5), ImageSize(), video(3, 1), SoundSize(9.0, 2)],
    ],
    ids=["a frame", "a long video", "a tiled image", "a mixture"],
)
@pytest.mark.parametrize(("multiple", "small"), [(1, False), (8, False), (1, True)])
def test_slices_contain_the_row(pools, sizes, multiple, small):
    config = tiny_config(pool_sizes=POOLS[pools])
    row = row_of(config, sizes)
    side, audio = config.vision.image_size, config.audio
    shape = (audio.window_frames, audio.num_mel_bins)
    tiles = np.arange(row.num_tiles, dtype=np.uint8)[:, None, None, None] + np.zeros((side, side, 3), np.uint8)
    windows = np.arange(row.num_windows, dtype=np.float32)[:, None, None] + np.zeros(shape, np.float32)
    slices = list(vision_slices(row, tiles, config, multiple, small=small))
    counts = {len(group.tiles) for group, _ in slices}
    assert counts <= set(tile_counts(config, multiple))
    if small and len(sizes) == 1 and isinstance(sizes[0], VideoSize):
        assert counts == {tile_counts(config)[0]}
    assert all(len(group.tiles) % multiple == 0 for group, _ in slices)
    for pool in range(len(config.vision_pools)):
        times = np.concatenate([group.vision_times[spans[pool]] for group, spans in slices])
        np.testing.assert_array_equal(times, row.vision_times[pool])
        # Each frame group has the same frames as in the row, identified by their tiles' pixels.
        shown = [
            np.where(members < 0, -1, group.tiles[group.s2_sources[members, -1], 0, 0, 0].astype(int))
            for group, spans in slices
            for members in group.frame_groups[pool]
            if (members >= 0).any()
        ]
        members = row.frame_groups[pool]
        expected = np.where(members < 0, -1, row.s2_sources[members, -1])
        np.testing.assert_array_equal(np.array(shown).reshape(expected.shape), expected)
    sounds = list(sound_slices(row, windows, config, multiple))
    assert all(len(group.windows) == multiple for group, _ in sounds)
    heard = np.concatenate([np.zeros(0), *(group.audio_times[span] for group, (span,) in sounds)])
    np.testing.assert_array_equal(heard, row.audio_times)
    marks = [mark for group, (span,) in sounds for mark in group.windows[: -(-span.stop // config.window_tokens), 0, 0]]
    np.testing.assert_array_equal(marks, np.arange(row.num_windows))


@pytest.mark.parametrize("scheme", ["axial", "harmonic_longest"])
def test_angles_are_sliced_with_their_tokens(scheme):
    time = dataclasses.replace(tiny_config().video_time, scheme=scheme, trope_dim=32)
    config = tiny_config(video_time=time, sound_time=time)
    row = row_of(config, [video(21, 2)])
    slices = vision_slices(row, np.zeros((21, 28, 28, 3), np.uint8), config)
    angles = np.concatenate([group.vision_angles[spans[0]] for group, spans in slices])
    np.testing.assert_array_equal(angles, row.vision_angles[0])
    assert np.ptp(angles) > 6
