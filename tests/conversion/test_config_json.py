"""Conversion between the published forms of config.json and OmniVinciConfig."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from omnivinci_jax.config import (
    AUDIO_COMPRESSIONS,
    FRAME_SAMPLINGS,
    TIME_SCHEMES,
    OmniAlignConfig,
    OmniVinciConfig,
    TimeEmbeddingConfig,
)
from omnivinci_jax.config_json import describe_publisher, from_json, read_config, to_json, to_released
from omnivinci_jax.data.processor import MediaReader
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.part_json import part_from_json
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from tests.media.files import write_video

TIMES = st.builds(
    TimeEmbeddingConfig,
    scheme=st.sampled_from(TIME_SCHEMES),
    max_time=st.floats(1, 4000),
    trope_dim=st.sampled_from((32, 128)),
    theta=st.floats(1, 100),
    time_embed_type=st.sampled_from(("pixel", "lang")),
    pair_angles=st.booleans(),
)
CONFIGS = st.builds(
    OmniVinciConfig,
    max_tiles=st.integers(9, 20),
    pool_sizes=st.sampled_from((((8, 1, 1),), ((4, 1, 1), (2, 2, 2)))),
    frame_sampling=st.sampled_from(FRAME_SAMPLINGS),
    num_video_frames=st.integers(1, 500),
    fps=st.floats(0.1, 30) | st.just(math.inf),
    audio_compression=st.sampled_from(AUDIO_COMPRESSIONS),
    audio_hop_length=st.integers(60, 400),
    audio_padding_seconds=st.none() | st.floats(1, 60),
    audio_n_fft=st.integers(200, 800),
    sampling_rate=st.sampled_from((8000, 16_000)),
    max_sound_seconds=st.floats(1, 4000),
    temporal_group_seconds=st.none() | st.floats(0.5, 60),
    video_time=TIMES,
    sound_time=TIMES,
    omni_align=st.builds(OmniAlignConfig, num_layers=st.integers(1, 4), learned_scale=st.booleans()),
)


@settings(max_examples=30, deadline=None)
@given(config=CONFIGS)
def test_every_field_round_trips(config):
    back = from_json(json.loads(json.dumps(to_json(config))))
    for field in dataclasses.fields(config):
        assert getattr(back, field.name) == getattr(config, field.name), field.name


@settings(max_examples=30, deadline=None)
@given(config=CONFIGS)
def test_every_field_round_trips_through_the_released_form(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("released")
    for name, values in to_released(to_json(config)).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    root = json.loads((folder / "config.json").read_text())
    assert isinstance(root["video_encoder"], str) and isinstance(root["s2_scales"], str) and "text_config" not in root
    assert read_config(folder / "config.json") == config


def published(**changes):
    return {**to_json(OmniVinciConfig()), **changes}


@pytest.mark.parametrize(
    "part, model_type",
    [
        ("text", "qwen2"),
        ("text", "llama"),
        ("vision", "siglip_vision_model"),
        ("audio", "qwen2_audio_encoder"),
        ("audio", "audioflamingo3_encoder"),
        ("audio", "whisper"),
    ],
)
def test_absent_keys_have_the_defaults_of_transformers(part, model_type):
    theirs = AutoConfig.for_model(model_type)
    ours = dataclasses.asdict(part_from_json(part, {"model_type": model_type}, "config.json"))
    if part == "text":
        assert ours.pop("qkv_bias") == (model_type == "qwen2")
        assert ours.pop("rope_theta") == theirs.rope_parameters["rope_theta"]
    assert ours == {name: getattr(theirs, name) for name in ours}


@pytest.mark.parametrize("fps", [None, 0, 0.0])
def test_no_rate_means_num_video_frames(fps, tmp_path):
    config = from_json(published(fps=fps, num_video_frames=4))
    assert math.isinf(config.fps) and to_json(config)["fps"] is None
    write_video(tmp_path / "a.mp4", np.zeros((10, 16, 16, 3), np.uint8), fps=5.0)
    clip = Conversation((Message("user", (Media("video", str(tmp_path / "a.mp4")),)),))
    frames = [len(MediaReader(c).measure(clip)[0].frame_indices) for c in (config, config.replace(fps=1.0))]
    assert frames == [4, 2]  # of two seconds


def test_a_decoder_without_biases_is_published_as_llama():
    text = dataclasses.replace(OmniVinciConfig().text, qkv_bias=False)
    config = OmniVinciConfig(text=text)
    base = published()["text_config"] | {"use_sliding_window": False, "bos_token_id": 5}
    root = to_json(config, {"text_config": base})
    assert root["text_config"]["model_type"] == "llama" and "qkv_bias" not in root["text_config"]
    assert "bos_token_id" not in root["text_config"]  # it was Qwen2.5's
    assert from_json(root) == config


def test_sound_towers_are_read_in_every_spelling():
    root = published()
    old = root["audio_config"]
    names = dict(d_model="hidden_size", encoder_ffn_dim="intermediate_size", encoder_layers="num_hidden_layers")
    names["encoder_attention_heads"] = "num_attention_heads"
    new = {names.get(key, key): value for key, value in old.items()} | {"model_type": "audioflamingo3_encoder"}
    new |= {"hidden_size": 640, "num_hidden_layers": 6, "num_attention_heads": 10, "intermediate_size": 2560}
    config = from_json(root | {"audio_config": new})
    assert dataclasses.astuple(config.audio) == (640, 2560, 6, 10, 128, 1500)
    written = to_json(config, root | {"audio_config": new})["audio_config"]
    assert written["d_model"] == 640 and "hidden_size" not in written
    with pytest.raises(ConfigError, match="d_model is 1280 but hidden_size is 640: they must be equal"):
        from_json(root | {"audio_config": {**old, "hidden_size": 640}})


def test_legacy_names_and_forms(tmp_path):
    root = published()
    text = root.pop("text_config")
    del text["rope_parameters"], text["rope_scaling"]
    root["llm_cfg"] = {**text, "rope_theta": 5e5}
    audio = root.pop("audio_config")
    root["sound_tower_cfg"] = {"model_type": "qwen2_audio", "audio_config": audio}
    root["vision_tower_cfg"] = root.pop("vision_config")
    root["s2_scales"] = "448,896,1344"
    root["video_encoder"] = json.dumps({**root["video_encoder"], "_target_": "llava.model.encoders.TSPVideoEncoder"})
    root["audio_chunk_length"] = 120
    (tmp_path / "config.json").write_text(json.dumps(root))
    config = read_config(tmp_path / "config.json")
    assert config.text.rope_theta == 5e5 and config.max_sound_seconds == 120
    assert config.replace(text=OmniVinciConfig().text, max_sound_seconds=3600.0) == OmniVinciConfig()


def published_alone(**changes):
    """A published config.json without the keys of this project."""
    root = published(**changes)
    for key in ("omnivinci_jax", "audio_hop_length", "interleaved_video_segment_duration"):
        del root[key]
    root["video_encoder"] |= {"period_fix": "MTCT", "embed_time": True}
    root["sound_encoder"] |= {"embed_time": "False"}
    return root


def test_published_keys_alone():
    config = from_json(published_alone(model_type="omnivinci"))
    assert (config.video_time.scheme, config.sound_time.scheme) == ("crte", "none")
    assert (config.audio_hop_length, config.temporal_group_seconds, config.audio_compression) == (160, 30.0, "none")


def test_model_type_and_form_say_whose_formula_and_frames(tmp_path):
    root = published_alone(model_type="audiovisualflamingo")
    successor = from_json(root)
    assert (successor.video_time.scheme, successor.frame_sampling) == ("harmonic_longest", "port")
    assert "Audio-Visual Flamingo" in describe_publisher(root, successor)
    for fix in ("shortest", "longest"):
        root["sound_encoder"] |= {"period_fix": fix, "embed_time": "True"}
        assert from_json(root).sound_time.scheme == f"harmonic_{fix}"
    # The released form is read by the released code, whatever the type says; so are other types in the merged form.
    for name, values in to_released(root).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(values))
    for released in (read_config(tmp_path / "config.json"), from_json(root | {"model_type": "omnivinci"})):
        schemes = released.video_time.scheme, released.sound_time.scheme
        assert (*schemes, released.frame_sampling) == ("crte", "longest", "released")
    # A model directory keeps what was read.
    kept = from_json(to_json(successor, root))
    assert kept == successor and kept.video_time.scheme == "harmonic_longest"
    # Those of earlier versions have no `scheme`: they have the released formula, and sample uniformly.
    config = OmniVinciConfig()
    earlier = to_json(config)
    del earlier["omnivinci_jax"]["frame_sampling"], earlier["omnivinci_jax"]["audio_padding_seconds"]
    assert earlier["model_type"] == "audiovisualflamingo" and from_json(earlier) == config


@pytest.mark.parametrize("hop_length, padding", [(160, None), (60, 30.0)])
def test_published_sounds_are_padded_to_30_seconds(hop_length, padding):
    config = from_json(published_alone(model_type="omnivinci") | {"audio_hop_length": hop_length})
    assert config.audio_padding_seconds == padding
    assert config.padded_samples(11.3) == 30 * 16_000


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"video_encoder": {"end_tokens": None, "embed_time": "True", "period_fix": "fourier"}},
            "video_encoder.period_fix is 'fourier'; supported: 'shortest', 'MTCT', 'longest', 'True', 'False'",
        ),
        (
            {"sound_encoder": {"end_tokens": None, "embed_time": "True", "max_time": 60, "time_embed_type": "wave"}},
            "sound_encoder.time_embed_type is 'wave'; supported: 'pixel', 'lang'",
        ),
        ({"mm_projector_cfg": {"mm_projector_type": "resampler"}}, "mm_projector_type is 'resampler'; supported:"),
        ({"sound_mm_projector": "mlp_downsample"}, "sound_mm_projector_type is 'mlp_downsample'; supported: 'mlp'"),
        ({"video_encoder": {}}, r"video_encoder.end_tokens is '\\n'; supported: None"),
        ({"sound_encoder": {"_target_": "x.WindowSoundEncoder"}}, "sound_encoder._target_ is 'WindowSoundEncoder'"),
        ({"dynamic_s2": False}, "dynamic_s2 is False; supported: True"),
        (
            {"omnivinci_jax": {"frame_sampling": "first"}},
            "frame_sampling is 'first'; supported: 'uniform', 'released', 'port'",
        ),
        ({"omnivinci_jax": {"audio_padding_seconds": 0.0}}, "audio_padding_seconds is 0.0: it must be > 0, or None"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer is -1; supported: -2"),
        ({"mm_use_bos_eos_tokens": True}, "mm_use_bos_eos_tokens is True; supported: False"),
        ({"text_config": {"hidden_size": 8}}, "text_config: no vocab_size"),
        ({"s2_scales": "448,large"}, "s2_scales is 'large': must be a number"),
        ({"vision_config": None}, "no vision_config, vision_tower_cfg or vision_tower/config.json"),
    ],
)
def test_unsupported_values_are_named(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_json(published(**change))
    assert "\n" not in str(error.value)


def test_rope_scaling_is_not_supported():
    root = published()
    root["text_config"]["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 1e6}
    with pytest.raises(ConfigError, match="rope_type is 'yarn'; supported: 'default'"):
        from_json(root)
