"""Every part of the forward pass, and the whole of it, against outputs recorded from PyTorch."""

import itertools
import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnivinci_jax.models.af_whisper import AFWhisperTower
from omnivinci_jax.models.attention import rope_cos_sin
from omnivinci_jax.models.dynamic_s2 import area_weights, merge_scales
from omnivinci_jax.models.omnivinci import OmniVinci, pool_frames
from omnivinci_jax.models.projectors import SoundProjector, VisionProjector, space_to_depth
from omnivinci_jax.models.qwen2 import Qwen2, Qwen2Layer
from omnivinci_jax.models.siglip import SiglipTower
from omnivinci_jax.sequence.batch import AUDIO, TEXT, VISION, Batch
from tests.parity.golden import CONFIG, assert_close, case, needs_golden, params, part, pixels

pytestmark = needs_golden

NEWLINE, IMAGE, VIDEO, SOUND = 7, 390, 391, 392
GRID = CONFIG.vision.grid
TILES, SLOTS = 12, 80  # that every case is padded to


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


def test_a_single_tile_is_its_features_on_every_scale():
    recorded = case("b_image_none_block")
    features = recorded["vision_tower_out.0"].reshape(2, GRID, GRID, -1)
    sources = np.array([[1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]])  # only the last source counts
    merged = jax.jit(merge_scales, static_argnums=3)(features, sources, np.zeros((2, 4), int), CONFIG.s2_sides)
    for tile in range(2):
        assert_close(merged[tile], recorded[f"s2_merged.{tile}"][0].transpose(1, 2, 0), 1e-6)


@pytest.mark.parametrize("source,side", [("y", 1), ("y8", 2)])
@pytest.mark.parametrize("rows,columns", [(2, 3), (3, 4), (5, 2)])
def test_area_weights_are_adaptive_average_pooling(source, side, rows, columns):
    recorded = part("area_interp")
    x = recorded["x8" if side == 2 else "x"][0]
    resize = [
        np.concatenate(np.asarray(area_weights(np.arange(n), np.full(n, n), GRID, side, jnp.float32)))
        for n in (rows, columns)
    ]
    assert_close(
        np.einsum("py,cyx,qx->cpq", resize[0], x, resize[1]), recorded[f"{source}_{4 * rows}x{4 * columns}"][0], 1e-6
    )


def test_space_to_depth():
    recorded = part("space_to_depth")
    assert_close(space_to_depth(recorded["x"].transpose(0, 2, 3, 1)), recorded["y"], 0)


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
    recorded = case("v_noembed_e")  # without time embedding: what the encoder puts out is the pooled tokens
    frames = recorded["video_encoder_in.0"].reshape(8, 2, 2, 64)
    pooled = pool_frames(jnp.asarray(frames), np.arange(8).reshape(4, 2), (2, 1, 1))
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


@pytest.mark.parametrize(
    "name",
    ["a_text", "b_image_none_block", "b_image_s2_2x3", "c_audio_2chunks", "d_video_noaudio", "e_video_audio",
     "v_pool_multi_e"],
)  # fmt: skip
def test_whole_forward_pass(name):
    config = CONFIG.replace(pool_sizes=((4, 1, 1), (2, 2, 2))) if name == "v_pool_multi_e" else CONFIG
    embeddings, logits = forward(config)(params(), batch_of(name, config))
    length = case(name)["logits"].shape[1]
    assert_close(embeddings[:, :length], case(name)["inputs_embeds"], 1e-5)
    assert_close(logits[:, :length, :400], case(name)["logits"], 2e-5)


@cache
def forward(config):
    """The jitted pass from a batch to (decoder inputs, logits)."""
    model = OmniVinci(config)

    @jax.jit
    def run(params, batch):
        x = model.apply({"params": params}, batch, method=model.embed)
        hidden = model.apply({"params": params}, x, batch.positions[0], batch.segment_ids[0], method=model.decode)
        return x, model.apply({"params": params}, hidden, method=model.logits)

    return run


def batch_of(name, config):
    """A recorded case as one group with one row, padded so that all cases share a compiled program."""
    recorded = case(name)

    def read(key):
        return json.loads(bytes(recorded[key])) if key in recorded else None

    def padded(array, length, fill=0):
        pad = [(0, length - len(array))] + [(0, 0)] * (np.ndim(array) - 1)
        return np.pad(array, pad, constant_values=fill)[None]

    video, audio = read("in.video_info.json"), read("in.audio_info.json")
    blocks = read("in.media_config.image.json")
    normalised = [recorded[k] if "video" in k else recorded[k][None] for k in media_keys(recorded)]
    tiles = pixels(np.concatenate(normalised)) if normalised else np.zeros((0, 56, 56, 3), np.float32)
    sources, block = s2_grid(*blocks["block_sizes"][0]) if blocks else s2_single(len(tiles))
    windows = recorded.get("sound_tower_in.0", np.zeros((0, 128, 100), np.float32)).transpose(0, 2, 1)

    groups, times, starts = [], [], [0]
    for pool, (time, _, _) in enumerate(config.vision_pools):
        count = TILES // time
        used = range(len(block)) if (pool == 0) == (video is None) else []
        members = padded(np.array(used, np.int32).reshape(-1, time), count, -1)[0]
        frame_times = np.array(video[0][0]["video_frame_times"] if video and pool else np.zeros(TILES))
        group_times = np.where(members >= 0, frame_times[members], 0).mean(1)
        groups.append(members[None])
        times.append(np.repeat(group_times, config.pool_tokens(pool)))
        starts.append(starts[-1] + len(times[-1]))
    num_audio = len(windows) * config.window_tokens
    length = audio[0][0]["new_audio_chunk_length"] if audio else 0
    audio_times = (np.arange(num_audio) + 0.5) * length / max(num_audio, 1)

    slots = slots_of(list(recorded["in.input_ids"][0]), config, starts, num_audio, video, audio, blocks)
    kind, index, tokens = (padded(column, SLOTS)[None] for column in zip(*slots, strict=True))
    shape, vision = tokens.shape, starts[-1]
    return Batch(
        tokens=tokens.astype(np.int32),
        slot_kind=kind.astype(np.int8),
        slot_index=index.astype(np.int32),
        positions=np.arange(SLOTS, dtype=np.int32)[None, None],
        segment_ids=padded(np.ones(len(slots), np.int32), SLOTS)[None],
        targets=np.zeros(shape, np.int32),
        loss_weights=np.zeros(shape, np.float32),
        tiles=padded(tiles, TILES),
        s2_sources=padded(sources, TILES),
        s2_block=padded(block, TILES),
        frame_groups=tuple(groups),
        windows=padded(windows, 2),
        vision_times=np.concatenate(times)[None].astype(np.float32),
        audio_times=padded(audio_times.astype(np.float32), 2 * config.window_tokens),
        vision_clip=np.zeros((1, vision), np.int32),
        audio_clip=np.zeros((1, 2 * config.window_tokens), np.int32),
        clip_source=np.zeros((1, 1), np.int32),
    )


def media_keys(recorded):
    keys = [key for kind in ("image", "video") for key in recorded if key.startswith(f"in.{kind}.")]
    return sorted(keys, key=lambda key: int(key.rsplit(".", 1)[1]))


def s2_grid(rows, columns):
    tiles = np.arange(rows * columns)
    sources = np.stack([np.append(np.arange(5), 5 + tile) for tile in tiles])
    return sources, np.stack([(t // columns, rows, t % columns, columns) for t in tiles])


def s2_single(count):
    return np.repeat(np.arange(count)[:, None], 6, axis=1), np.zeros((count, 4), int)


def slots_of(ids, config, starts, num_audio, video, audio, blocks):
    """(kind, index, token) of each slot, by the rules that shared/golden/README.md states."""

    def text(token):
        return [(TEXT, 0, token)]

    def vision(numbers):
        return [(VISION, int(n), 0) for n in numbers]

    def sound(numbers):
        return [(AUDIO, int(n), 0) for n in numbers]

    def cut(tokens, ends, total):
        ends = [0] + [-(-end * len(tokens) // total) for end in ends]
        return [tokens[a:b] for a, b in itertools.pairwise(ends)]

    slots, image = [], 0
    interleaved = video is not None and video[0][0]["has_audio"]
    for token in ids:
        if token == IMAGE:
            rows, columns = blocks["block_sizes"][0] if blocks else (1, 1)
            numbers = np.arange(rows * columns * 4).reshape(rows, columns, 2, 2).swapaxes(1, 2).reshape(-1) + 4 * image
            slots += vision(numbers) + text(NEWLINE)
            image += 1
        elif token == SOUND and not interleaved:
            slots += sound(range(num_audio))
        elif token == VIDEO and not interleaved:
            slots += vision(starts[1] + np.arange(len(video[0][0]["video_frame_times"]) // 2 * 4))
        elif token == VIDEO:
            info, num_frames = video[0][0], len(video[0][0]["video_frame_times"])
            # With several pools each one's tokens, and the newline after them, are part of what is cut into groups.
            tokens = []
            for pool in range(1, len(config.vision_pools)):
                count = num_frames // config.vision_pools[pool][0] * config.pool_tokens(pool)
                tokens += vision(starts[pool] + np.arange(count))
                tokens += text(NEWLINE) if len(config.vision_pools) > 2 else []
            frames = [members[-1] + 1 for members in info["segment_vis_indices_list"]]
            mels = [end for _, end in info["segment_aud_indices_list"]]
            by_group = zip(
                cut(tokens, frames, info["expected_frame_count"]),
                cut(sound(range(num_audio)), mels, audio[0][0]["new_audio_n_stft_frames"]),
                strict=True,
            )
            for vision_slots, sound_slots in by_group:
                slots += vision_slots + text(NEWLINE) + sound_slots + text(NEWLINE)
        elif token != SOUND:
            slots += text(token)
    return slots
