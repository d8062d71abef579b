"""An export holds every file that its loaders open, with the right values: opened by transformers, and read as JSON."""

import json
import shutil

import numpy as np
import pytest
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    Qwen2AudioEncoderConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from conversion.loader_files import write_loader_files
from conversion.stored_model import StoredModel
from conversion.to_torch import to_torch
from omnivinci_jax.config_json import to_json
from omnivinci_jax.media.audio import log_mel
from omnivinci_jax.model_dir import save
from omnivinci_jax.sequence.chat import PLACEHOLDERS
from tests.tiny import REPOSITORY, random_params, tiny_config, tiny_tokenizer

CONFIG = tiny_config(max_tiles=10, num_video_frames=24)
IDS = {"image": 485, "video": 486, "sound": 487}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Exports of a trained model in both layouts, as written by the command's function."""
    folder = tmp_path_factory.mktemp("exports")
    save(folder / "model", CONFIG, random_params(CONFIG), tiny_tokenizer())
    for layout in ("merged", "released"):
        assert to_torch(folder / "model", folder / layout, layout=layout) == []
    return folder


def read(path):
    return json.loads(path.read_text())


def write(tmp_path, config, layout="merged", files=()):
    """Writes the files of an export of a model with `config`; `files` of the tiny tokenizer are in its directory."""
    model = tmp_path / "model"
    model.mkdir()
    for name in files:
        shutil.copy(REPOSITORY / "configs" / "tiny_tokenizer" / name, model)
    (tmp_path / "export").mkdir()
    notes = write_loader_files(StoredModel(model, {}, config, [], {}, (), {}), tmp_path / "export", layout)
    return tmp_path / "export", notes


@pytest.mark.parametrize("tokenizer_folder", ["merged", "released/llm"])
def test_tokenizer_and_generation(exports, tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(exports / tokenizer_folder)
    (a,), ids = tiny_tokenizer().encode("a"), tokenizer("<image>a<vila/video><sound>\n").input_ids
    assert ids == [IDS["image"], a, IDS["video"], IDS["sound"], tiny_tokenizer().newline_id]
    assert {kind: tokenizer.convert_tokens_to_ids(token) for kind, token in PLACEHOLDERS.items()} == IDS
    assert "You are a helpful assistant<" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False
    )
    generation = GenerationConfig.from_pretrained(exports / tokenizer_folder)
    assert (generation.eos_token_id, generation.pad_token_id) == (484, 482)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (484, 482)


@pytest.mark.parametrize("layout", ["merged", "released"])
def test_ids_of_the_tokenizer_are_in_the_configuration(exports, layout):
    root = read(exports / layout / "config.json")
    assert root["media_token_ids"] == IDS and root["encoder_text_token_ids"] == {"\n": [198]}
    assert root["image_aspect_ratio"] == "dynamic_s2" and "untrained" not in root["omnivinci_jax"]


@pytest.mark.parametrize("layout", ["merged", "released"])
def test_configurations_of_the_parts(exports, layout):
    if layout == "merged":
        root = read(exports / "merged" / "config.json")
        text, vision, audio = (AutoConfig.for_model(**root[f"{part}_config"]) for part in ("text", "vision", "audio"))
    else:
        parts = ("llm", "vision_tower", "sound_tower")
        text, vision, audio = (AutoConfig.from_pretrained(exports / "released" / part) for part in parts)
    assert isinstance(text, Qwen2Config) and text.hidden_size == 128 and text.rope_parameters["rope_theta"] == 1e6
    assert isinstance(audio, Qwen2AudioEncoderConfig) and audio.d_model == 64
    assert isinstance(vision, SiglipVisionConfig) and vision.vision_use_head is False  # there is no pooling head


def test_configuration_of_the_whole_model(exports):
    if "audiovisualflamingo" in CONFIG_MAPPING:
        config = AutoConfig.from_pretrained(exports / "merged")
        assert config.media_token_ids == IDS and config.text_config.hidden_size == 128
    else:
        with pytest.raises(ValueError, match="model type `audiovisualflamingo`"):
            AutoConfig.from_pretrained(exports / "merged")


def test_processor_configuration(exports):
    expected = {
        "processor_class": "AudioVisualFlamingoProcessor",
        "padding_side": "left",
        "image_aspect_ratio": "dynamic_s2",
        "s2_scales": [28, 56, 84],
        "max_tiles": 10,
        "num_video_frames": 24,
        "load_audio_in_video": True,
        "interleaved_vis_aud_in_video": True,
        "interleaved_video_segment_duration": 1.0,
        "mm_use_bos_eos_tokens": False,
        "audio_sampling_rate": 16_000,
        "audio_chunk_length": "max_60",
        "audio_hop_length": 400,
    }
    processor = read(exports / "merged" / "processor_config.json")
    image, sound = processor.pop("image_processor"), processor.pop("feature_extractor")
    assert processor == expected
    assert read(exports / "merged" / "preprocessor_config.json") == {
        **image,
        **sound,
        "processor_class": "AudioVisualFlamingoProcessor",
    }
    assert read(exports / "released" / "vision_tower" / "preprocessor_config.json") == image
    assert not (exports / "released" / "preprocessor_config.json").exists()


@pytest.mark.parametrize("files", ["both", "preprocessor_config.json", "released"])
def test_image_processor(exports, files, tmp_path):
    folder = exports / "merged" if files == "both" else exports / "released" / "vision_tower"
    if files == "preprocessor_config.json":
        folder = tmp_path
        shutil.copy(exports / "merged" / files, folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    tile = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    (pixels,) = processor(tile, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels, (tile.transpose(2, 0, 1) / 255 - 0.5) / 0.5, atol=1e-6)
    (pixels,) = processor(np.repeat(tile, 2, axis=1), return_tensors="np")["pixel_values"]
    assert pixels.shape == (3, 28, 28)  # resized without keeping the aspect


@pytest.mark.parametrize("files", ["both", "preprocessor_config.json"])
def test_feature_extractor(exports, files, tmp_path):
    folder = exports / "merged"
    if files != "both":
        folder = tmp_path
        shutil.copy(exports / "merged" / files, folder)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    sound = np.random.default_rng(0).normal(size=16_000 * 30).astype(np.float32) / 10
    (mel,) = extractor(sound, sampling_rate=16_000, return_tensors="np")["input_features"]
    assert mel.shape == (128, 1200)
    np.testing.assert_allclose(mel.T, log_mel(sound, hop_length=400), atol=1e-4)


def test_a_model_directory_with_tokenizer_json_alone(tmp_path):
    export, notes = write(tmp_path, CONFIG, files=["tokenizer.json"])
    assert notes == []
    tokenizer = AutoTokenizer.from_pretrained(export)
    (a,) = tiny_tokenizer().encode("a")
    assert tokenizer("a<sound>\n").input_ids == [a, IDS["sound"], tiny_tokenizer().newline_id]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (484, 482)


def test_a_generation_config_of_the_model_is_kept(tmp_path):
    (tmp_path / "given").mkdir()
    export, _ = write(tmp_path / "given", CONFIG, "released", ["tokenizer.json", "tokenizer_config.json"])
    assert GenerationConfig.from_pretrained(export / "llm").temperature != 0.25
    values = {"eos_token_id": [484, 482], "pad_token_id": 482, "do_sample": True, "temperature": 0.25}
    (tmp_path / "given" / "model" / "generation_config.json").write_text(json.dumps(values))
    model = StoredModel(tmp_path / "given" / "model", {}, CONFIG, [], {}, (), {})
    write_loader_files(model, export, "released")
    assert GenerationConfig.from_pretrained(export / "llm").temperature == 0.25


def test_settings_that_the_port_has_no_words_for(tmp_path):
    config = tiny_config(max_sound_seconds=12.5, temporal_group_seconds=None)
    export, notes = write(tmp_path, config)
    processor = read(export / "processor_config.json")
    assert processor["interleaved_vis_aud_in_video"] is False
    assert "interleaved_video_segment_duration" not in processor and processor["audio_chunk_length"] == "max_13"
    cut, tokenizer = notes
    assert "cut at 13 s instead of 12.5" in cut and "has no tokenizer" in tokenizer
    assert not (export / "generation_config.json").exists()


def test_the_source_keeps_its_other_keys(tmp_path):
    root = to_json(CONFIG) | {"image_aspect_ratio": "resize", "chat_template": "mine"}
    (tmp_path / "export").mkdir()
    write_loader_files(StoredModel(tmp_path, root, CONFIG, [], {}, (), {}), tmp_path / "export", "merged")
    exported = read(tmp_path / "export" / "config.json")
    assert exported["chat_template"] == "mine" and exported["image_aspect_ratio"] == "dynamic_s2"
    assert exported["architectures"] == ["AudioVisualFlamingoForConditionalGeneration"]
