"""Every part of the forward pass against recorded PyTorch outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnivinci_jax.models.af_whisper import AFWhisperTower
from omnivinci_jax.models.attention import rope_cos_sin
from omnivinci_jax.models.dynamic_s2 import area_weights, merge_scales
from omnivinci_jax.models.omnivinci import pool_frames
from omnivinci_jax.models.projectors import SoundProjector, VisionProjector, space_to_depth
from omnivinci_jax.models.qwen2 import Qwen2, Qwen2Layer
from omnivinci_jax.models.siglip import SiglipTower
from tests.parity.golden import CONFIG, assert_close, case, needs_golden, params, part, pixels

pytestmark = needs_golden

GRID = CONFIG.vision.grid


@pytest.mark.parametrize("name", ["b_image_s2_2x3", "d_video_noaudio"])
def test_vision_tower(name):
    tower = jax.jit(SiglipTower(CONFIG.vision).apply)
    tiles = pixels(case(name)["vision_tower_in.0"])
    assert_close(tower({"params": params()["vision_tower"]}, tiles), case(name)["vision_tower_out.0"], 1e-5)


@pytest.mark.parametrize("name", ["c_audio_2chunks", "e_video_audio"])
def test_sound_tower(name):
    tower = jax.jit(AFWhisperTower(CONFIG.audio).apply)
    windows = case(name)["sound_tower_in.0"].transpose(0, 2, 1)
    assert_close(tower({"params": params()["sound_tower"]}, windows), case(name)["sound_tower_out.0"], 1e-5)


def test_dynamic_s2_merges_scales():
    recorded = case("b_image_s2_2x3")
    features = recorded["vision_tower_out.0"].reshape(11, GRID, GRID, -1)
    sources, block = s2_grid(2, 3)
    merged = jax.jit(merge_scales, static_argnums=3)(features, sources, block, CONFIG.s2_sides)
    expected = recorded["s2_merged.0"][0].transpose(1, 2, 0)  # one map of 8 x 12
    expected = expected.reshape(2, GRID, 3, GRID, -1).swapaxes(1, 2).reshape(6, GRID, GRID, -1)
    assert_close(merged, expected, 1e-5)


def test_a_single_tile_repeats_its_features_on_every_scale():
    recorded = case("b_image_none_block")
    features = recorded["vision_tower_out.0"].reshape(2, GRID, GRID, -1)
    sources = np.array([[1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]])  # only the last source matters
    merged = jax.jit(merge_scales, static_argnums=3)(features, sources, np.zeros((2, 4), int), CONFIG.s2_sides)
    for tile in range(2):
        assert_close(merged[tile], recorded[f"s2_merged.{tile}"][0].transpose(1, 2, 0), 1e-6)


@pytest.mark.parametrize("source,side", [("y", 1), ("y8", 2)])
@pytest.mark.parametrize("rows,columns", [(2, 3), (3, 4), (5, 2)])
def test_area_weights_are_adaptive_average_pooling(source, side, rows, columns):
    recorded = part("area_interp")
    x = recorded["x8" if side == 2 else "x"][0]
    resize = [
        np.concatenate(np.asarray(area_weights(jnp.arange(n), jnp.full(n, n), GRID, side, jnp.float32)))
        for n in (rows, columns)
    ]
    assert_close(
        np.einsum("py,cyx,qx->cpq", resize[0], x, resize[1]), recorded[f"{source}_{4 * rows}x{4 * columns}"][0], 1e-6
    )


def test_space_to_depth():
    recorded = part("space_to_depth")
    assert_close(space_to_depth(jnp.asarray(recorded["x"].transpose(0, 2, 3, 1))), recorded["y"], 0)


@pytest.mark.parametrize("name", ["b_image_s2_2x3", "d_video_noaudio"])
def test_vision_projector(name):
    x = case(name)["mm_projector_in.0"]
    x = x.reshape(len(x), GRID, GRID, -1)
    out = jax.jit(VisionProjector(CONFIG).apply)({"params": params()["mm_projector"]}, x)
    assert_close(out.reshape(len(x), -1, 64), case(name)["mm_projector_out.0"], 1e-5)


def test_vision_projector_pads_odd_grids():
    recorded = part("projector_odd5x5")
    out = jax.jit(VisionProjector(CONFIG).apply)(
        {"params": params()["mm_projector"]}, recorded["x"].reshape(2, 5, 5, -1)
    )
    assert_close(out.reshape(2, 9, 64), recorded["y"], 1e-5)


def test_sound_projector():
    recorded = case("c_audio_2chunks")
    x = recorded["sound_mm_projector_in.0"].reshape(2, 25, -1)
    out = jax.jit(SoundProjector(CONFIG).apply)({"params": params()["sound_mm_projector"]}, x)
    assert_close(out.reshape(50, 64), recorded["sound_mm_projector_out.0"], 1e-5)


def test_pooling_in_time():
    recorded = case("v_noembed_e")  # without time embedding, the encoder's output is the pooled tokens
    frames = recorded["video_encoder_in.0"].reshape(8, 2, 2, 64)
    pooled = pool_frames(jnp.asarray(frames), jnp.arange(8).reshape(4, 2), (2, 1, 1))
    assert_close(pooled, recorded["video_encoder_out.0"], 1e-6)


@pytest.mark.parametrize("layer", range(3))
def test_decoder_layer(layer):
    recorded = case("e_video_audio")
    x = recorded[f"llm_layer{layer}_in.0"]
    rope = rope_cos_sin(jnp.arange(x.shape[1])[None], CONFIG.text.head_dim, CONFIG.text.rope_theta)
    weights = jax.tree.map(lambda stack: stack[layer], params()["llm"]["layers"])
    run = jax.jit(Qwen2Layer(CONFIG.text).apply)
    out, _ = run({"params": weights}, x, rope, jnp.ones(x.shape[:2], jnp.int32))
    assert_close(out, recorded[f"llm_layer{layer}_out.0"], 1e-5)


@pytest.mark.parametrize("name", ["a_text", "e_video_audio"])
def test_decoder(name):
    recorded = case(name)
    x = recorded["inputs_embeds"]
    model, variables = Qwen2(CONFIG.text), {"params": params()["llm"]}
    hidden = jax.jit(model.apply)(variables, x, jnp.arange(x.shape[1])[None], jnp.ones(x.shape[:2], jnp.int32))
    assert_close(hidden, recorded["llm_norm_out.0"], 2e-5)
    logits = model.apply(variables, hidden, method=model.logits)
    assert_close(logits[..., :400], recorded["logits"], 2e-5)


def s2_grid(rows, columns):
    tiles = np.arange(rows * columns)
    sources = np.stack([np.append(np.arange(5), 5 + tile) for tile in tiles])
    return sources, np.stack([(t // columns, rows, t % columns, columns) for t in tiles])
