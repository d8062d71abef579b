import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omnivinci_jax.models.dynamic_s2 import area_weights, merge_scales

MERGE = jax.jit(merge_scales, static_argnums=3)


def adaptive_average(x, rows, columns):
    """Averages [h, w, C] to [rows, columns, C], one output at a time."""
    height, width, _ = x.shape
    out = np.zeros((rows, columns, x.shape[2]))
    for r, c in np.ndindex(rows, columns):
        block = x[r * height // rows : math.ceil((r + 1) * height / rows)]
        out[r, c] = block[:, c * width // columns : math.ceil((c + 1) * width / columns)].mean((0, 1))
    return out


@settings(deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_matches_merge_resize_and_cut(rows, columns):
    sides, grid, smaller = (1, 2, 3), 3, 14  # 14 tiles of the smaller scales come first
    features = np.random.default_rng(0).normal(size=(smaller + 16, grid, grid, 2)).astype(np.float32)
    index = np.arange(16)  # outputs past rows * columns stand for padding
    sources = np.concatenate([np.tile(np.arange(smaller), (16, 1)), smaller + index[:, None]], axis=1)
    block = np.stack([index // columns, np.full(16, rows), index % columns, np.full(16, columns)], axis=1)

    merged = MERGE(features, sources, block, sides)[: rows * columns]

    maps, first = [], 0
    for tall, wide in (*((side, side) for side in sides), (rows, columns)):
        tiles = features[first : first + tall * wide].reshape(tall, wide, grid, grid, -1)
        whole = tiles.swapaxes(1, 2).reshape(tall * grid, wide * grid, -1)
        maps.append(adaptive_average(whole, rows * grid, columns * grid))
        first += tall * wide
    expected = np.concatenate(maps, axis=-1).reshape(rows, grid, columns, grid, -1).swapaxes(1, 2)
    np.testing.assert_allclose(merged, expected.reshape(-1, grid, grid, expected.shape[-1]), atol=1e-5)


def test_every_output_is_a_mean():
    index, count = np.divmod(np.arange(12), 4)[1], np.full(12, 4)
    weights = area_weights(jnp.asarray(index), jnp.asarray(count), 5, 2, jnp.float32)
    assert weights.shape == (12, 5, 10)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
