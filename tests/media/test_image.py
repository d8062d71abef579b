from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from omnivinci_jax.media.image import dynamic_s2_grid, dynamic_s2_tiles, frame_tile

GOLDEN = Path(__file__).parents[2].parent / "shared/golden/parts/dynamic_s2_tiles.npz"
SCALES = (56, 112, 168)
PAPER_SCALES = (448, 896, 1344)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the folder of reference outputs, ../shared/golden, is absent")
@pytest.mark.parametrize("name", ["100x60", "60x100", "64x64", "300x90", "333x250"])
def test_tiles_match_the_released_model(name):
    golden = np.load(GOLDEN)
    tiles, grid = dynamic_s2_tiles(golden[f"img_{name}"], SCALES)
    assert grid == tuple(golden[f"block_{name}"])
    np.testing.assert_array_equal(tiles, golden[f"tiles_{name}"])


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (1920, 1080, (3, 4)),
        (1000, 1000, (3, 3)),
        (1080, 1920, (5, 2)),  # not the transpose of 1920 x 1080: 9:16 is 0.16 from 2:5 and 0.19 from 3:4
        (9000, 100, (1, 12)),
        (100, 9000, (12, 1)),
    ],
)
def test_grids_of_common_sizes(width, height, grid):
    assert dynamic_s2_grid(width, height, PAPER_SCALES) == grid


def test_area_breaks_ties_between_equally_close_grids():
    # 7:8 is half way between 1 (3 x 3 tiles) and 3:4 (4 x 3): the larger grid wins if the image fills half of it.
    assert 700 * 800 < 12 * 448**2 / 2 < 1400 * 1600
    assert dynamic_s2_grid(700, 800, PAPER_SCALES) == (3, 3)
    assert dynamic_s2_grid(1400, 1600, PAPER_SCALES) == (4, 3)


@given(st.integers(1, 5_000), st.integers(1, 5_000), st.sampled_from([(8,), (8, 16), (8, 16, 24), (8, 24)]))
def test_no_allowed_grid_is_closer(width, height, scales):
    rows, cols = dynamic_s2_grid(width, height, scales)
    min_tiles = (scales[-1] // scales[0]) ** 2
    assert min_tiles <= rows * cols <= 12
    for other_rows in range(1, 13):
        for other_cols in range(1, 13):
            if min_tiles <= other_rows * other_cols <= 12:
                ratio = width / height
                assert abs(ratio - cols / rows) <= abs(ratio - other_cols / other_rows)


@pytest.mark.parametrize("scales", [(32,), (32, 64), (32, 96), (16, 32, 48)])
def test_tiles_cover_the_resized_image_row_by_row(scales):
    image = np.random.default_rng(0).integers(0, 256, (70, 130, 3), np.uint8)
    tiles, (rows, cols) = dynamic_s2_tiles(image, scales)
    side = scales[0]
    first_scales = [scale // side for scale in scales[:-1]]
    assert tiles.shape == (sum(n * n for n in first_scales) + rows * cols, side, side, 3)
    largest = Image.fromarray(image).resize((cols * side, rows * side), Image.Resampling.BICUBIC)
    for number, tile in enumerate(tiles[-rows * cols :]):
        top, left = number // cols * side, number % cols * side
        np.testing.assert_array_equal(tile, np.asarray(largest.crop((left, top, left + side, top + side))))


def test_frames_are_resized_to_one_tile():
    frame = np.zeros((30, 90, 3), np.uint8)
    frame[:, 45:] = 255
    tile = frame_tile(frame, 56)
    assert tile.shape == (56, 56, 3)
    assert (tile[:, :26] == 0).all()
    assert (tile[:, 30:] == 255).all()


def test_invalid_scales_raise_errors():
    with pytest.raises(ValueError, match="whole multiples"):
        dynamic_s2_grid(100, 100, (56, 100))
    with pytest.raises(ValueError, match="9 tiles"):
        dynamic_s2_grid(100, 100, SCALES, max_tiles=8)
