"""Every part of the forward pass, and the whole of it, against outputs recorded from PyTorch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnivinci_jax.models.af_whisper import AFWhisperTower
from omnivinci_jax.models.attention import rope_cos_sin
from omnivinci_jax.models.dynamic_s2 import area_weights, merge_scales
from omnivinci_jax.models.omni_align import OmniAlignNet
from omnivinci_jax.models.omnivinci import OmniVinci, pool_frames
from omnivinci_jax.models.projectors import SoundProjector, VisionProjector, space_to_depth
from omnivinci_jax.models.qwen2 import Qwen2, Qwen2Layer
from omnivinci_jax.models.siglip import SiglipTower
from omnivinci_jax.sequence.batch import AUDIO, TEXT, VISION, Batch
from tests.parity.golden import CONFIG, assert_close, case, needs_golden, params, part, pixels

pytestmark = needs_golden

NEWLINE, IMAGE, VIDEO, SOUND = 7, 390, 391, 392
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
    merged = merge_scales(jnp.asarray(features), sources, block, CONFIG.s2_sides)
    expected = recorded["s2_merged.0"][0].transpose(1, 2, 0)  # one map of 8 x 12
    expected = expected.reshape(2, GRID, 3, GRID, -1).swapaxes(1, 2).reshape(6, GRID, GRID, -1)
    assert_close(merged, expected, 1e-5)


def test_a_single_tile_is_its_features_on_every_scale():
    recorded = case("b_image_none_block")
    features = recorded["vision_tower_out.0"].reshape(2, GRID, GRID, -1)
    sources = np.array([[1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]])  # only the last source counts
    merged = merge_scales(jnp.asarray(features), sources, np.zeros((2, 4), int), CONFIG.s2_sides)
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
    out = VisionProjector(CONFIG).apply({"params": params()["mm_projector"]}, x)
    assert_close(out.reshape(len(x), -1, 64), case(name)["mm_projector_out.0"], 1e-5)


def test_vision_projector_pads_odd_grids():
    recorded = part("projector_odd5x5")
    out = VisionProjector(CONFIG).apply({"params": params()["mm_projector"]}, recorded["x"].reshape(2, 5, 5, -1))
    assert_close(out.reshape(2, 9, 64), recorded["y"], 1e-5)


def test_sound_projector():
    recorded = case("c_audio_2chunks")
    x = recorded["sound_mm_projector_in.0"].reshape(2, 25, -1)
    out = SoundProjector(CONFIG).apply({"params": params()["sound_mm_projector"]}, x)
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
    out, _ = Qwen2Layer(CONFIG.text).apply({"params": weights}, x, rope, jnp.ones(x.shape[:2], jnp.int32))
    assert_close(out, recorded[f"llm_layer{layer}_out.0"], 1e-5)


@pytest.mark.parametrize("name", ["a_text", "e_video_audio"])
def test_decoder(name):
    recorded = case(name)
    x = recorded["inputs_embeds"]
    model, variables = Qwen2(CONFIG.text), {"params": params()["llm"]}
    hidden = model.apply(variables, x, jnp.arange(x.shape[1])[None], jnp.ones(x.shape[:2], jnp.int32))
    assert_close(hidden, recorded["llm_norm_out.0"], 2e-5)
    logits = model.apply(variables, hidden, method=model.logits)
    assert_close(logits[..., :400], recorded["logits"], 2e-5)


@pytest.mark.parametrize(
    "name",
    ["a_text", "b_image_none_block", "b_image_s2_2x3", "c_audio_2chunks", "d_video_noaudio", "e_video_audio",
     "v_noembed_e", "v_pool_multi_e"],
)  # fmt: skip
def test_whole_forward_pass(name):
    batch, config = batch_of(name)
    model = OmniVinci(config)
    align = OmniAlignNet(config.omni_align).init(
        jax.random.key(0), *(jnp.zeros((1, 1, 64)), jnp.zeros((1, 1), jnp.int32)) * 2, 1
    )
    variables = {"params": params() | {"omni_align": align["params"]}}

    def forward(variables, batch):
        output = model.apply(variables, batch)
        embeddings = model.apply(variables, batch, method=model.embed)
        return embeddings, model.apply(variables, output.hidden, method=model.logits)

    embeddings, logits = jax.jit(forward)(variables, batch)
    assert_close(embeddings, case(name)["inputs_embeds"], 1e-5)
    assert_close(logits[0, ..., :400], case(name)["logits"], 2e-5)


def batch_of(name):
    """A recorded case as one group with one row, and the configuration it was recorded under."""
    recorded, config = case(name), CONFIG
    if name == "v_noembed_e":
        none = config.video_time.__class__(scheme="none")
        config = config.replace(video_time=none, sound_time=none)
    if name == "v_pool_multi_e":
        config = config.replace(pool_sizes=((4, 1, 1), (2, 2, 2)))

    def read(key):
        return json.loads(bytes(recorded[key])) if key in recorded else None

    ids = list(recorded["in.input_ids"][0])
    video, audio = read("in.video_info.json"), read("in.audio_info.json")
    normalised = [recorded[k] if "video" in k else recorded[k][None] for k in media_keys(recorded, "image", "video")]
    tiles = pixels(np.concatenate(normalised)) if normalised else np.zeros((1, 56, 56, 3), np.float32)
    blocks = read("in.media_config.image.json")
    sources, block = s2_grid(*blocks["block_sizes"][0]) if blocks else s2_single(len(tiles))
    windows = recorded.get("sound_tower_in.0", np.zeros((1, 128, 100), np.float32)).transpose(0, 2, 1)

    images, frames = (range(len(block)), []) if video is None else ([], range(len(tiles)))
    groups, times, starts = [], [], [0]
    for pool, (time, _, _) in enumerate(config.vision_pools):
        members = np.array(list(images) if pool == 0 else list(frames), np.int32).reshape(-1, time)
        frame_times = np.array(video[0][0]["video_frame_times"] if len(frames) and pool else np.zeros(len(tiles)))
        groups.append(members)
        times.append(np.repeat(frame_times[members].mean(1), config.pool_tokens(pool)))
        starts.append(starts[-1] + len(times[-1]))
    num_audio = len(windows) * config.window_tokens
    length = audio[0][0]["new_audio_chunk_length"] if audio else 0
    audio_times = (np.arange(num_audio) + 0.5) * length / num_audio

    slots = slots_of(ids, config, starts, num_audio, video, audio, blocks)
    kind, index, tokens = (np.array(column)[None, None] for column in zip(*slots, strict=True))
    shape, vision = tokens.shape, starts[-1]
    batch = Batch(
        tokens=tokens.astype(np.int32),
        slot_kind=kind.astype(np.int8),
        slot_index=index.astype(np.int32),
        positions=np.arange(shape[-1], dtype=np.int32)[None, None],
        segment_ids=np.ones(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        loss_weights=np.zeros(shape, np.float32),
        tiles=tiles[None],
        s2_sources=sources[None],
        s2_block=block[None],
        frame_groups=tuple(members[None] for members in groups),
        windows=windows[None],
        vision_times=np.concatenate(times)[None].astype(np.float32),
        audio_times=audio_times[None].astype(np.float32),
        vision_clip=np.zeros((1, vision), np.int32),
        audio_clip=np.zeros((1, num_audio), np.int32),
        clip_source=np.zeros((1, 1), np.int32),
    )
    return batch, config


def media_keys(recorded, *kinds):
    keys = [key for kind in kinds for key in recorded if key.startswith(f"in.{kind}.")]
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
        return [tokens[a:b] for a, b in zip(ends, ends[1:], strict=False)]

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
            slots += vision(range(starts[1], starts[2]))
        elif token == VIDEO:
            info = video[0][0]
            # With several pools each one's tokens, and the newline after them, are part of what is cut into groups.
            tokens = []
            for pool in range(1, len(config.vision_pools)):
                tokens += vision(range(starts[pool], starts[pool + 1]))
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
