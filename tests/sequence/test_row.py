import jax
import numpy as np
import pytest

from omnivinci_jax.config import TimeEmbeddingConfig
from omnivinci_jax.sequence.assemble import PackedRow, assemble, empty_group
from omnivinci_jax.sequence.batch import AUDIO, TEXT, VISION, Capacity
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from omnivinci_jax.sequence.row import ImageSize, SoundSize, VideoSize, lay_out
from tests.tiny import random_params, tiny_config, tiny_tokenizer

FRAMES = VideoSize((0, 6, 12, 18), (0.25, 0.75, 1.25, 1.75), 2.0, SoundSize(2.0, 1))


def row_of(*media_and_sizes, config=None, answer="red"):
    items, sizes = zip(*media_and_sizes, strict=True) if media_and_sizes else ((), ())
    conversation = Conversation((Message("user", (*items, "Which?")), Message("assistant", (answer,))))
    return lay_out(conversation, list(sizes), config or tiny_config(), tiny_tokenizer())


def media_slots(row):
    """(kind, index) of the media slots and newlines between the user's turn and the question."""
    (media,) = np.nonzero(row.slot_kind != TEXT)
    span = slice(media[0], media[-1] + 2)
    return list(zip(row.slot_kind[span].tolist(), row.slot_index[span].tolist(), strict=True))


def test_a_video_with_sound_is_grouped_in_time_with_newlines():
    config = tiny_config(temporal_group_seconds=1.0)
    row = row_of((Media("video", "a.mp4"), FRAMES), config=config)
    per_second = config.window_tokens / (config.window_samples / config.sampling_rate)
    sound = [(AUDIO, i) for i in range(round(2 * per_second))]
    newline, half = (TEXT, 0), len(sound) // 2
    picture = [(VISION, i) for i in range(4)]
    expected = [*picture[:2], newline, *sound[:half], newline, *picture[2:], newline, *sound[half:], newline]
    assert media_slots(row) == expected
    newlines = row.tokens[(row.slot_kind == TEXT) & (row.tokens == tiny_tokenizer().newline_id)]
    assert len(newlines) >= 4
    # Sound past the clip's end is padding: it has no slots and is not part of the clip for OmniAlignNet.
    assert (row.audio_clip[: len(sound)] == 1).all() and (row.audio_clip[len(sound) :] == 0).all()
    np.testing.assert_allclose(row.vision_times[0], FRAMES.frame_times)
    np.testing.assert_allclose(row.audio_times[:2], [0.5 / per_second, 1.5 / per_second], rtol=1e-6)


def test_pooled_frames_have_the_mean_time_of_their_frames():
    config = tiny_config(pool_sizes=((3, 1, 1),))
    row = row_of((Media("video", "a.mp4"), VideoSize((0, 1, 2, 3), (0.0, 1.0, 2.0, 7.0), 8.0, None)), config=config)
    assert row.frame_groups[1].tolist() == [[0, 1, 2], [3, -1, -1]]
    np.testing.assert_allclose(row.vision_times[1], [1.0, 7.0])
    assert [kind for kind, _ in media_slots(row)][:2] == [VISION + 1] * 2


def test_every_clip_has_its_own_harmonic_angles():
    time = TimeEmbeddingConfig("harmonic_shortest", 60.0, 16)
    config = tiny_config(pool_sizes=((2, 1, 1),), video_time=time, sound_time=time)
    clips = [VideoSize((0, 1, 2, 3), times, 8.0, None) for times in ((0.0, 1.0, 2.0, 4.0), (0.0, 4.0, 5.0, 6.0))]
    row = row_of(
        (Media("image", "a.png"), ImageSize()),
        *((Media("video", f"{index}.mp4"), size) for index, size in enumerate(clips)),
        config=config,
    )
    (image, video), tokens = row.vision_angles, config.pool_tokens(1)
    assert (image == 0).all() and image.shape == (config.pool_tokens(0), 8)
    # Pooled times: 0.5 and 3 s, then 2 and 5.5 s; their ratios to the clip's first are 1, 6 and 1, 2.75.
    turns = np.repeat([1, 6, 1, 2.75], tokens)[:, None] * np.array([1, 2, 3, 4, 1, 2, 3, 4])
    np.testing.assert_allclose(np.exp(1j * video), np.exp(2j * np.pi * turns), atol=2e-5)


def test_an_image_is_read_row_by_row_over_its_tiles():
    config = tiny_config(
        vision=tiny_config().vision.__class__(
            hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=56
        ),
        s2_scales=(56, 112, 168),
    )
    row = row_of((Media("image", "a.png"), ImageSize(2, 3)), config=config)
    assert config.tile_grid == 2 and row.num_tiles == 1 + 4 + 6
    first_map_row = [index for _, index in media_slots(row)][:6]
    assert first_map_row == [0, 1, 4, 5, 8, 9]  # two tokens of each of the three tiles in the first row
    assert row.s2_sources[4].tolist() == [0, 1, 2, 3, 4, 5 + 4]
    assert row.s2_block[4].tolist() == [1, 2, 1, 3]
    assert media_slots(row)[-1] == (TEXT, 0)


def test_targets_are_the_answer_shifted_by_one_slot():
    row = row_of()
    group = assemble([PackedRow(0, 1, row, *no_media())], tiny_config(), Capacity(1, len(row) + 3, 1, 1, 1))
    asked = group.loss_weights[0] > 0
    ids = [*tiny_tokenizer().encode("red"), tiny_tokenizer().eos_id]
    assert group.targets[0][asked].tolist() == ids
    (predicting,) = np.nonzero(asked)
    assert group.tokens[0][predicting + 1].tolist() == ids
    assert group.segment_ids[0].tolist() == [1] * len(row) + [0] * 3


def no_media(tiles=0, windows=0, config=None):
    config = config or tiny_config()
    side, audio = config.vision.image_size, config.audio
    random = np.random.default_rng(tiles)
    return (
        random.integers(0, 255, (tiles, side, side, 3), np.uint8),
        random.normal(size=(windows, audio.window_frames, audio.num_mel_bins)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def model():
    from omnivinci_jax.models.omnivinci import OmniVinci

    model = OmniVinci(tiny_config())
    variables = {"params": random_params(model.config)}
    forward = jax.jit(model.apply)

    def hidden_states(group):
        return np.asarray(forward(variables, jax.tree.map(lambda array: array[None], group)).hidden[0])

    return model.config, hidden_states


def test_packed_rows_match_unpacked_rows(model):
    """A video, an image, a sound and a text in one group of two rows, against each in its own group."""
    config, hidden_states = model
    rows = [
        row_of((Media("video", "a.mp4"), FRAMES), answer="red blue"),
        row_of((Media("image", "b.png"), ImageSize(3, 3)), answer="7"),
        row_of((Media("sound", "c.wav"), SoundSize(5.0, 2)), answer="beep"),
        row_of(answer="4"),
    ]
    packed = [
        PackedRow(row_index, segment, row, *no_media(row.num_tiles, row.num_windows))
        for row_index, segment, row in zip((1, 0, 0, 1), (1, 1, 2, 2), rows, strict=True)
    ]
    together = Capacity(rows=2, slots=200, tiles=24, windows=4, clips=4)
    hidden = hidden_states(assemble(packed, config, together))
    used = [0, 0]
    alone = together._replace(rows=1, slots=max(map(len, rows)))  # shared by all rows: compiles once
    for item in packed:
        expected = hidden_states(assemble([item._replace(row_index=0, segment=1)], config, alone))[0, : len(item.row)]
        found = hidden[item.row_index, used[item.row_index] : used[item.row_index] + len(item.row)]
        used[item.row_index] += len(item.row)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_an_empty_group_is_finite(model):
    config, hidden_states = model
    assert np.isfinite(hidden_states(empty_group(config, Capacity(2, 8, 2, 1, 1)))).all()
