"""Frames, temporal groups and padding of sound as the released media code and the Transformers port have them."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import soundfile
from transformers import WhisperFeatureExtractor

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.config_json import from_json, to_json
from omnivinci_jax.data.processor import MediaReader
from omnivinci_jax.media.frame_sampling import group_ends, port_indices, released_indices, sample_frames
from omnivinci_jax.sequence.batch import AUDIO, VISION
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from omnivinci_jax.sequence.row import lay_out_media
from tests.media.files import numbered_frames, tone, write_video
from tests.tiny import tiny_config

CLIPS = [(3, 7.3), (128, 12.5), (129, 30_000 / 1001), (5_000, 24_000 / 1001)]


def clip_of(kind, path):
    return Conversation((Message("user", (Media(kind, str(path)),)),))


@pytest.mark.parametrize("frames, rate", CLIPS)
def test_released_frames_are_evenly_spaced_from_the_first_to_the_last(frames, rate):
    # round(linspace(0, N - 1, 128)), in exact arithmetic; ties to even.
    expected = [round(Fraction(k * (frames - 1), 127)) for k in range(128)]
    assert released_indices(frames, 128).tolist() == expected
    if frames == 3:
        assert expected == [0] * 32 + [1] * 64 + [2] * 32
    if frames == 129:
        assert expected == [*range(64), *range(65, 129)]
    times = 4.0 + np.arange(frames) / rate  # the sound begins 4 s before the first frame
    sampled = sample_frames("released", times, 4.0 + frames / rate, 2.0, 128)
    assert sampled.indices.tolist() == expected
    assert sampled.rate == pytest.approx(rate, rel=1e-12) and sampled.seconds == pytest.approx(frames / rate)
    np.testing.assert_allclose(sampled.times, np.array(expected) / rate, rtol=1e-12)


def test_the_port_reads_every_frame_from_the_first():
    assert port_indices(129, 128).tolist() == list(range(128)) == port_indices(255, 128).tolist()
    assert port_indices(5_000, 128).tolist() == list(range(0, 39 * 128, 39))
    assert port_indices(3, 128).tolist() == [0]
    for frames in (128, 129, 300, 1_000, 5_000):
        for count in (8, 100, 127, 128):
            np.testing.assert_array_equal(port_indices(frames, count), np.arange(0, frames, frames / count, dtype=int))


def written_out(indices, frames, rate, group_seconds, sound_seconds, mel_rate):
    """Frames and mel frames before each group's end, from the definition of the released groups."""
    seconds = frames / rate
    ends, mel_end = [], 0
    for group in range(math.ceil(seconds / group_seconds)):
        before = sum(index < min((group + 1) * group_seconds * rate, frames) for index in indices)
        start, end = group * group_seconds, min((group + 1) * group_seconds, seconds)
        if start < min(end, sound_seconds):
            mel_end = round(min(end, sound_seconds) * mel_rate)
        ends.append((before, mel_end))
    return tuple(ends)


@pytest.mark.parametrize("frames, rate", CLIPS)
def test_groups_follow_the_index(frames, rate):
    """Groups and sounds shorter and longer than the clip, at hops of 160 and 60."""
    seconds = frames / rate
    samplings = (released_indices(frames, 128), port_indices(frames, 128))
    for indices, group, sound, mel_rate in product(samplings, (1 / 7, 0.5, 2), (0.5, 1.0, 1.3), (100, 266)):
        settings = (frames, rate, group * seconds, sound * seconds, mel_rate)
        names = ("frames", "rate", "group_seconds", "sound_seconds", "mel_rate")
        found = group_ends(indices, **dict(zip(names, settings, strict=True)))
        assert found == written_out(indices, *settings)
        assert found[-1][0] == len(indices)


def test_a_frame_at_the_border_of_a_group_belongs_to_the_next():
    # 25 fps: frame 750 is shown at 30 s. The sound ends with the video.
    times = np.arange(1_500) / 25
    sampled = sample_frames("released", times, 60.0, 2.0, 1_500)
    assert sampled.rate == 25
    ends = group_ends(sampled.indices, frames=1_500, rate=25.0, group_seconds=30, sound_seconds=60.0, mel_rate=100)
    assert ends == ((750, 3_000), (1_500, 6_000))


@pytest.mark.parametrize("rule", ["released", "port"])
def test_a_short_file_is_read_as_planned(rule, tmp_path):
    """Five frames at 12.5 fps: the released code repeats them, the port reads the first alone."""
    path = write_video(tmp_path / "a.mp4", numbered_frames(5, 56, 64), fps=12.5, waveform=tone(1.0))
    config = tiny_config(frame_sampling=rule, num_video_frames=8, temporal_group_seconds=0.2)
    reader = MediaReader(config)
    (planned,) = reader.measure(clip_of("video", path))
    (size,), tiles, windows = reader.load(clip_of("video", path))
    assert planned == size and len(windows) == 1 and size.seconds == pytest.approx(0.4)
    expected = [0, 1, 1, 2, 2, 3, 3, 4] if rule == "released" else [0]
    assert list(size.frame_indices) == expected and len(tiles) == len(expected)
    np.testing.assert_allclose(size.frame_times, np.array(expected) / 12.5)
    # Frames 0, 1 and 2 precede 0.2 s. 40 mel frames a second; sound after the video is in no group.
    assert size.group_ends == (((5 if rule == "released" else 1), 8), (len(expected), 16))
    if rule == "released":
        np.testing.assert_array_equal(tiles[1], tiles[2])
        assert np.abs(tiles[0].astype(int) - tiles[1]).max() > 50  # the barcodes differ
    row = lay_out_media(Media("video", str(path)), size, config)
    assert (row.slot_kind == VISION).sum() == len(expected) * config.pool_tokens(0)
    # 0.4 s of the window's 6 s, and no padding after it.
    assert (row.slot_kind == AUDIO).sum() == math.ceil(16 * config.window_tokens / 240)


def test_cached_media_keep_their_groups(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(5, 56, 64), fps=12.5, waveform=tone(1.0))
    reader = MediaReader(
        tiny_config(frame_sampling="released", num_video_frames=8, temporal_group_seconds=0.2), cache=tmp_path / "cache"
    )
    first, second = (reader.load(clip_of("video", path))[0] for _ in range(2))
    assert first == second and first[0].group_ends == ((5, 8), (8, 16))


@pytest.mark.parametrize("hop_length, windows", [(60, 3), (160, 1)])
def test_sound_is_padded_to_30_seconds_at_every_hop(hop_length, windows, tmp_path):
    """11.3 s: padded to 30 s, then log-mel, then zero frames to whole windows."""
    root = to_json(OmniVinciConfig(audio_hop_length=hop_length)) | {"model_type": "omnivinci"}
    del root["omnivinci_jax"]
    config = from_json(root)
    waveform = np.random.default_rng(0).normal(0, 0.1, 180_800).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", waveform, 16_000, "FLOAT")
    reader, clip = MediaReader(config), clip_of("sound", tmp_path / "a.wav")
    (size,), _, mel = reader.load(clip)
    assert reader.measure(clip) == [size] and size.windows == len(mel) == windows

    extractor = WhisperFeatureExtractor(feature_size=128, hop_length=hop_length, chunk_length=30)
    padded = np.pad(waveform, (0, 480_000 - len(waveform)))
    expected = extractor(padded, sampling_rate=16_000, padding="max_length", return_tensors="np").input_features[0].T
    assert len(expected) == 480_000 // hop_length
    frames = mel.reshape(-1, 128)
    np.testing.assert_allclose(frames[: len(expected)], expected, rtol=0, atol=2e-5)
    assert len(frames) == windows * 3_000 and (frames[len(expected) :] == 0).all()

    row = lay_out_media(Media("sound", "a.wav"), size, config)
    count = 750 * windows  # 2,250 and 750
    assert len(row) == count
    np.testing.assert_allclose(row.audio_times, (np.arange(count) + 0.5) * 30 / count, rtol=1e-6)
