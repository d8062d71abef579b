"""Square tiles of images: Dynamic-S2 for a single image, one tile per video frame (paper, Appendix C.1)."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def dynamic_s2_grid(width: int, height: int, scales: tuple[int, ...], max_tiles: int = 12) -> tuple[int, int]:
    """Returns (rows, cols) of the grid that replaces the largest scale of an image.

    Among the grids with at least the largest scale's tile count and at most `max_tiles`, takes the one whose aspect
    ratio is closest to the image's. A tie goes to the smallest grid, or to a larger one if the image has more than half
    of its pixels.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        scales: side of the square that the image is resized to at each scale, in pixels; the first is the tile's side.
        max_tiles: upper limit of rows · cols.

    Raises:
        ValueError: the scales are not whole multiples of the first, or `max_tiles` is below the largest scale's count.
    """
    min_tiles = _tiles_per_side(scales)[-1] ** 2
    if max_tiles < min_tiles:
        raise ValueError(f"max_tiles is {max_tiles}, but the largest of scales {scales} has {min_tiles} tiles")
    grids = [
        (rows, cols)
        for rows in range(1, max_tiles + 1)
        for cols in range(1, max_tiles // rows + 1)
        if rows * cols >= min_tiles
    ]
    best, best_distance = grids[0], np.inf
    for rows, cols in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - cols / rows)
        fills_half = width * height > 0.5 * scales[0] ** 2 * rows * cols
        if distance < best_distance or (distance == best_distance and fills_half):
            best, best_distance = (rows, cols), distance
    return best


def dynamic_s2_tiles(
    image: UInt8[np.ndarray, "h w 3"], scales: tuple[int, ...], max_tiles: int = 12
) -> tuple[UInt8[np.ndarray, "n p p 3"], tuple[int, int]]:
    """Cuts an image into tiles; also returns (rows, cols) of its largest grid. Arguments, errors: `dynamic_s2_grid`.

    Tiles are ordered by scale, each scale row by row: 1 for the first scale, 4 for a second one of twice its side, …,
    and rows · cols for the grid that replaces the last scale. p is the first scale.
    """
    height, width = image.shape[:2]
    grid = dynamic_s2_grid(width, height, scales, max_tiles)
    grids = [(side, side) for side in _tiles_per_side(scales)[:-1]] + [grid]
    return np.concatenate([_cut(image, rows, cols, scales[0]) for rows, cols in grids]), grid


def frame_tile(frame: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "p p 3"]:
    """Resizes a video frame, or one of several images, to one square tile; the aspect ratio is not kept."""
    return _resize(frame, side, side)


def _tiles_per_side(scales: tuple[int, ...]) -> list[int]:
    if any(scale % scales[0] for scale in scales):
        raise ValueError(f"scales {scales} must be whole multiples of the first")
    return [scale // scales[0] for scale in scales]


def _cut(image: UInt8[np.ndarray, "h w 3"], rows: int, cols: int, side: int) -> UInt8[np.ndarray, "n p p 3"]:
    resized = _resize(image, cols * side, rows * side)
    return resized.reshape(rows, side, cols, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)


def _resize(image: UInt8[np.ndarray, "h w 3"], width: int, height: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
