from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from omnivinci_jax.config import (
    AFWhisperConfig,
    OmniAlignConfig,
    OmniVinciConfig,
    Qwen2Config,
    SiglipConfig,
    TimeEmbeddingConfig,
)
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.omnivinci import OmniVinci, pool_frames
from omnivinci_jax.sequence.batch import AUDIO, TEXT, VISION, Batch

TIME = TimeEmbeddingConfig("crte", 60.0, 16)
CONFIG = OmniVinciConfig(
    text=Qwen2Config(100, 16, 24, 2, 2, 1),
    vision=SiglipConfig(8, 12, 3, 2, 8, 4),
    audio=AFWhisperConfig(8, 12, 2, 2, 8, 8),
    s2_scales=(8, 16),
    pool_sizes=((2, 1, 1),),
    video_time=TIME,
    sound_time=TIME,
    omni_align=OmniAlignConfig(num_heads=2),
)
MODEL = OmniVinci(CONFIG)


def make_batch(groups=2, tiles=4, windows=2, seed=0):
    """Makes random media, and slots: three of text, then every vision and audio token, then padding."""
    rng = np.random.default_rng(seed)
    vision, audio = tiles + tiles // 2, windows * CONFIG.window_tokens
    kinds = [TEXT] * 3 + [VISION] * vision + [AUDIO] * audio + [TEXT] * 2
    index = [0] * 3 + [*range(vision)] + [*range(audio)] + [0] * 2
    slots = (groups, 1, len(kinds))

    def same(values, dtype=np.int32):
        return np.broadcast_to(np.asarray(values, dtype), (groups, *np.shape(values))).copy()

    return Batch(
        tokens=np.where(np.array(kinds) == TEXT, rng.integers(1, 100, slots), 0).astype(np.int32),
        slot_kind=same([kinds], np.int8),
        slot_index=same([index]),
        positions=same([np.arange(slots[-1])]),
        segment_ids=same([[1] * (slots[-1] - 2) + [0] * 2]),
        targets=np.zeros(slots, np.int32),
        loss_weights=np.zeros(slots, np.float32),
        sources=np.zeros(slots, np.int32),
        tiles=rng.integers(0, 256, (groups, tiles, 8, 8, 3), np.uint8),
        s2_sources=same(np.repeat(np.arange(tiles)[:, None], 2, axis=1)),
        s2_block=same(np.zeros((tiles, 4))),
        frame_groups=(same(np.arange(tiles)[:, None]), same(np.arange(tiles).reshape(-1, 2))),
        windows=rng.normal(size=(groups, windows, 16, 8)).astype(np.float32),
        vision_times=rng.uniform(0, 60, (groups, vision)).astype(np.float32),
        audio_times=rng.uniform(0, 60, (groups, audio)).astype(np.float32),
        vision_clip=same([1] * vision),
        audio_clip=same([1] * audio),
        clip_source=same([1, 0]),
    )


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(MODEL.init)(jax.random.key(0), make_batch()))["params"]


@pytest.fixture(scope="module")
def forward():
    return jax.jit(lambda params, batch: MODEL.apply({"params": params}, batch))


def test_parts_have_their_names_and_float32_parameters(params):
    assert sorted(params) == [
        "llm", "mm_projector", "omni_align", "sound_mm_projector", "sound_tower", "vision_tower",
    ]  # fmt: skip
    assert params["llm"]["embed_tokens"]["embedding"].shape == (128, 16)
    assert params["vision_tower"]["layers"]["mlp"]["fc1"]["kernel"].shape == (2, 8, 12)
    assert params["vision_tower"]["last_layer"]["mlp"]["fc1"]["kernel"].shape == (8, 12)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_groups_do_not_see_each_other(params, forward):
    batch, other = make_batch(), make_batch(seed=1)
    mixed = jax.tree.map(lambda a, b: np.stack([a[0], b[1]]), batch, other)
    first, second = (
        (out.hidden, out.clips.vision, out.clips.audio) for out in map(partial(forward, params), (batch, mixed))
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=1e-6)
        assert not np.allclose(a[1], b[1], atol=1e-3)


def test_every_token_reaches_only_its_slot(params):
    batch = make_batch(groups=1)
    embed = jax.jit(lambda params, batch: MODEL.apply({"params": params}, batch, method=MODEL.embed))
    x = embed(params, batch)[0]
    table = params["llm"]["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(x[:3], table[batch.tokens[0, 0, :3]])

    tiles, windows = batch.tiles.copy(), batch.windows.copy()
    tiles[0, 3] = 255 - tiles[0, 3]
    windows[0, 1] += 1
    changed = np.any(embed(params, batch._replace(tiles=tiles, windows=windows))[0] != x, axis=-1)
    # Slot 3 + token: frame 3 is token 3 of the first pool and part of the second group of the second.
    vision = 6
    assert list(np.flatnonzero(changed)) == [3 + 3, 3 + 5, *range(3 + vision + 2, 3 + vision + 4)]


def test_padding_changes_nothing(params, forward):
    batch = make_batch()
    hidden = forward(params, batch).hidden
    batch.tokens[..., -2:] = 5
    np.testing.assert_allclose(forward(params, batch).hidden[:, :, :-2], hidden[:, :, :-2], atol=1e-6)


def test_parameters_kept_only_for_export_get_no_gradient(params):
    def loss(params):
        output = MODEL.apply({"params": params}, jax.tree.map(jnp.asarray, make_batch()))
        logits = MODEL.apply({"params": params}, output.hidden, method=MODEL.logits)[..., :100]
        return (logits**2).sum() + (output.clips.vision**3).sum() + (output.clips.audio**3).sum()

    gradients = jax.jit(jax.grad(loss))(params)
    without = set()
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        if not np.any(gradient):
            without.add("/".join(key.key for key in path[:2]))
    assert without == {"vision_tower/last_layer", "vision_tower/post_layernorm", "sound_tower/embed_positions"}


def test_bfloat16_is_close(params, forward):
    hidden = jax.jit(OmniVinci(CONFIG, Compute(jnp.bfloat16)).apply)({"params": params}, make_batch()).hidden
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(hidden, np.float32), forward(params, make_batch()).hidden, atol=0.1)


def test_text_needs_no_media(params, forward):
    hidden = forward(params, make_batch(tiles=0, windows=0)).hidden
    assert hidden.shape == (2, 1, 5, 16) and np.isfinite(hidden).all()


def test_pooling_averages_blocks_and_fills_missing_frames():
    frames = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)
    members = np.array([[3, 1, 2], [4, 0, -1], [-1, -1, -1]])
    out = np.asarray(pool_frames(jnp.asarray(frames), jnp.asarray(members), (3, 2, 4))).reshape(3, 2, 3)
    blocks = frames.reshape(5, 2, 2, 4, 3).mean((2, 3))
    np.testing.assert_allclose(out[0], blocks[[3, 1, 2]].mean(0), atol=1e-6)
    np.testing.assert_allclose(out[1], (blocks[4] + blocks[0] + frames[[4, 0]].mean()) / 3, atol=1e-6)
    np.testing.assert_array_equal(out[2], 0)
