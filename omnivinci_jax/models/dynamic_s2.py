"""Dynamic-S2 (Appendix C.1): each scale of an image is resized to its largest scale; all are concatenated on channels.

The reference merges the tiles of a scale into one map, resizes it by area to the largest map and cuts that back into
tiles. Here each output tile is computed alone, with static shapes: area resizing is separable, so a tile is (rows
matrix) x (map of its source tiles) x (columns matrix), and its position in the grid gives the matrices.
"""

import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


def merge_scales(
    features: Float[Array, "tiles g g C"],
    sources: Int[Array, "N S"],
    block: Int[Array, "N 4"],
    sides: tuple[int, ...],
) -> Float[Array, "N g g D"]:
    """Returns the features of every output tile: its scales concatenated on channels, the largest last.

    Args:
        features: the tower's output for every tile.
        sources: `Batch.s2_sources`: for each scale but the largest its side² tiles row by row, then the tile itself.
        block: `Batch.s2_block`: (row, rows, column, columns) of the tile in the largest scale's grid. Where rows is 0,
            the tile's own features serve as every scale.
        sides: tiles along one side of each scale but the largest (`OmniVinciConfig.s2_sides`).
    """
    grid = features.shape[1]
    row, rows, column, columns = block.T
    own = features[sources[:, -1]]
    alone = (rows == 0)[:, None, None, None]
    scales, first = [], 0
    for side in sides:
        tiles = features[sources[:, first : first + side**2]]
        first += side**2
        scale_map = rearrange(tiles, "n (i j) h w c -> n (i h) (j w) c", i=side)
        resized = jnp.einsum(
            "npy,nyxc,nqx->npqc",
            area_weights(row, rows, grid, side, features.dtype),
            scale_map,
            area_weights(column, columns, grid, side, features.dtype),
        )
        scales.append(jnp.where(alone, own, resized))
    return jnp.concatenate([*scales, own], axis=-1)


def area_weights(
    index: Int[Array, " N"], count: Int[Array, " N"], grid: int, side: int, dtype: DTypeLike
) -> Float[Array, "N grid inputs"]:
    """Returns rows index·grid … (index + 1)·grid - 1 of the adaptive average pooling of side·grid values to count·grid.

    Output o is the mean of the inputs from floor(o·in/out) to ceil((o + 1)·in/out) - 1, also where out exceeds in.
    """
    inputs = side * grid
    outputs = jnp.maximum(count, 1)[:, None] * grid
    position = index[:, None] * grid + jnp.arange(grid)
    start = position * inputs // outputs
    end = -(-(position + 1) * inputs // outputs)
    source = jnp.arange(inputs)
    inside = (source >= start[..., None]) & (source < end[..., None])
    return (inside / (end - start)[..., None]).astype(dtype)
