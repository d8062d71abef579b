"""The complete model, with rows from sequence/, against the float64 oracle, on shapes beyond the recorded cases."""

import math
from functools import cache

import jax
import numpy as np
import pytest

from conversion.mapping import tensors
from omnivinci_jax.config import (
    AFWhisperConfig,
    OmniAlignConfig,
    OmniVinciConfig,
    Qwen2Config,
    SiglipConfig,
    TimeEmbeddingConfig,
)
from omnivinci_jax.models.initialization import parameter_shapes
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.assemble import PackedRow, assemble
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from omnivinci_jax.sequence.row import ImageSize, SoundSize, VideoSize, lay_out
from omnivinci_jax.sequence.tokenizer import Tokenizer
from tests.parity import oracle
from tests.parity.compare import jitted
from tests.parity.torch_weights import params_from_torch

TIME = TimeEmbeddingConfig("crte", max_time=60.0, trope_dim=32)
SIDE, WINDOW_SECONDS, MEDIA_IDS = 42, 4.0, {"image": 60, "video": 61, "sound": 62}
RATE, FRAMES = 16_000, 40  # mel frames per window


def config_of(pool=(2, 1, 1), compression="max", patch=14):
    return OmniVinciConfig(
        text=Qwen2Config(64, 48, 80, 2, 6, 2, rope_theta=10_000.0),
        vision=SiglipConfig(24, 40, 3, 3, SIDE, patch),
        audio=AFWhisperConfig(24, 40, 2, 3, 16, FRAMES // 2),
        s2_scales=(SIDE, 2 * SIDE, 3 * SIDE),
        pool_sizes=(pool,),
        audio_compression=compression,
        audio_hop_length=round(WINDOW_SECONDS * RATE / FRAMES),
        temporal_group_seconds=3.0,
        video_time=TIME,
        sound_time=TIME,
        omni_align=OmniAlignConfig(num_heads=4),
    )


def shape_of(config):
    return oracle.Shape(
        3, 3, 6, 2, 10_000.0, (1, 2, 3), config.pool_sizes[0], config.audio_compression, 16, 60.0, 3.0, WINDOW_SECONDS
    )


@cache
def weights_of(config):
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config)
    weights = {}
    for tensor in tensors(config, shapes):
        noise = rng.normal(size=tensor.shape)
        if len(tensor.shape) == 1:
            noise = 0.3 * noise + ("norm" in tensor.name or "layers.1." in tensor.name) * tensor.name.endswith("weight")
        elif "embed" not in tensor.name or "patch" in tensor.name:
            noise /= math.sqrt(np.prod(tensor.shape[1:]))
        weights[tensor.name] = noise.astype(np.float32)
    return weights


@cache
def params_of(config):
    return params_from_torch(weights_of(config), config)


class Ids(Tokenizer):
    """Stands in for a tokenizer with the token ids of a conversation."""

    newline_id, media_ids = oracle.NEWLINE, MEDIA_IDS

    def __init__(self, ids):
        self.ids = np.array(ids, np.int32)

    def encode_conversation(self, _conversation, *, generate):
        return self.ids, np.zeros(len(self.ids), bool)


def random_media(rng):
    def tiles(count):
        return rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)

    def sound(seconds):
        count = math.ceil(seconds / WINDOW_SECONDS)
        return oracle.Sound(rng.normal(size=(count, FRAMES, 16)).astype(np.float32), seconds)

    def video(frames, seconds, sound_seconds=None):
        times = [(k + 0.3) * seconds / frames for k in range(frames)]
        return oracle.Video(tiles(frames), times, seconds, sound(sound_seconds) if sound_seconds else None)

    def image(block=None):
        count = 1 if block is None else 1 + 4 + block[0] * block[1]
        return oracle.Image(tiles(count), block)

    return image, sound, video


def ours(config, items):
    """Computes the package's decoder inputs and logits of the same items."""
    ids, media, sizes, tiles, windows = [], [], [], [np.zeros((0, SIDE, SIDE, 3), np.uint8)], []
    for item in items:
        if isinstance(item, oracle.Image):
            kind, size = "image", ImageSize(*(item.block or (0, 0)))
            tiles.append(item.tiles)
        elif isinstance(item, oracle.Sound):
            kind, size = "sound", SoundSize(item.seconds, len(item.windows))
            windows.append(item.windows)
        elif isinstance(item, oracle.Video):
            sound = item.sound and SoundSize(item.sound.seconds, len(item.sound.windows))
            kind, size = "video", VideoSize(tuple(range(len(item.times))), tuple(item.times), item.seconds, sound)
            tiles.append(item.frames)
            windows += [item.sound.windows] if item.sound else []
        else:
            ids += item
            continue
        ids.append(MEDIA_IDS[kind])
        media.append(Media(kind, f"{kind}{len(media)}"))
        sizes.append(size)
    row = lay_out(Conversation((Message("user", tuple(media)),)), sizes, config, Ids(ids))
    tiles = np.concatenate(tiles)
    windows = np.concatenate([np.zeros((0, FRAMES, 16), np.float32), *windows])
    capacity = Capacity(
        rows=1, slots=112, tiles=20, windows=4, clips=4
    )  # the same for all cases, which share compiled programs
    group = assemble([PackedRow(0, 1, row, tiles, windows)], config, capacity)
    batch = jax.tree.map(lambda array: array[None], group)
    model = OmniVinci(config)
    params = params_of(config)
    x = jitted(model, "embed")(params, batch)
    hidden = jitted(model, "decode")(params, x, batch.positions[0], batch.segment_ids[0])
    logits = np.asarray(jitted(model, "logits")(params, hidden))
    return np.asarray(x[0, : len(row)]), logits[0, : len(row), :64]


def conversations():
    image, sound, video = random_media(np.random.default_rng(1))
    text, more = [3, 9, 4], [11, 12]
    return {
        "frames_the_pool_does_not_divide": (config_of((3, 1, 1), "average", 7), [text, video(7, 9.0), more]),
        "one_frame": (config_of((2, 1, 1)), [text, video(1, 1.0), more]),
        "pool_in_space": (config_of((2, 2, 2), "none"), [text, video(5, 4.0, 4.0), more]),
        "odd_grid_1x9": (config_of(), [text, image((1, 9)), more]),
        "odd_grid_12x1": (config_of(), [text, image((12, 1)), more]),
        "even_grid_5x2": (config_of((3, 1, 1), "average", 7), [text, image((5, 2)), more]),
        "several_images": (config_of(), [text, image(), more, image(), image(), more]),
        "two_windows": (config_of((3, 1, 1), "average", 7), [text, sound(7.5), more]),
        "all_audio_tokens": (config_of((2, 2, 2), "none"), [text, sound(3.0), more]),
        "video_with_sound_then_question": (config_of(), [text, video(9, 8.0, 7.0), more, sound(2.5), more]),
        "sound_longer_than_pictures": (config_of(), [text, video(4, 3.5, 9.5), more]),
    }


CONVERSATIONS = conversations()


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversation(name):
    config, items = CONVERSATIONS[name]
    weights, shape = weights_of(config), shape_of(config)
    expected = oracle.decoder_inputs(weights, shape, items)
    x, logits = ours(config, items)
    assert x.shape == expected.shape
    np.testing.assert_allclose(x, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(logits, oracle.logits(weights, shape, expected), rtol=0, atol=1e-4)
