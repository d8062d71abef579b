"""The files beside the weights that PyTorch code opens: configurations, the tokenizer's files, the processor's."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from conversion.compressed import quantization_config
from conversion.layouts import Layout, file_name
from conversion.mapping import HEAD, LINEAR
from conversion.stored_model import StoredModel
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.config_json import quantization_of, to_json, to_released
from omnivinci_jax.models.quantized import GROUP_SIZE
from omnivinci_jax.sequence.tokenizer import FILES, Tokenizer

_ARCHITECTURE = "AudioVisualFlamingoForConditionalGeneration"
_PROCESSOR = "AudioVisualFlamingoProcessor"
_PAD = "<|endoftext|>"


def write_loader_files(model: StoredModel, destination: Path, layout: Layout) -> list[str]:
    """Writes all files of an export except its tensors, and returns notes for the user.

    Raises:
        UserError: the tokenizer is damaged or has no media tokens.
    """
    notes = []
    root = to_json(model.config, model.root, model.untrained, quantization_of(model.root))
    root.setdefault("architectures", [_ARCHITECTURE])
    files: dict[str, dict[str, Any]] = {}
    beside_tokenizer = ""
    if layout == "merged":
        files |= _processor_files(model.config, notes)
    else:
        files["vision_tower/preprocessor_config.json"] = _image_processor(model.config)
        beside_tokenizer = "llm/"
    if (model.folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer(model.folder)
        root["media_token_ids"] = tokenizer.media_ids
        root["encoder_text_token_ids"] = {"\n": [tokenizer.newline_id]}
        files |= {beside_tokenizer + name: values for name, values in _tokenizer_files(tokenizer).items()}
    else:
        notes.append(f"{model.folder} has no tokenizer, so the export has neither its files nor generation_config.json")
    files |= {"config.json": root} if layout == "merged" else to_released(root)
    if model.schemes:
        for folder, quantization in _quantization_configs(model, layout).items():
            files[f"{folder}/config.json".lstrip("/")]["quantization_config"] = quantization
    for name, values in files.items():
        (destination / name).parent.mkdir(exist_ok=True)
        (destination / name).write_text(json.dumps(values, indent=2) + "\n")
    for name in FILES:
        if (model.folder / name).is_file():
            shutil.copy(model.folder / name, destination / beside_tokenizer / name)
    return notes


def _quantization_configs(model: StoredModel, layout: Layout) -> dict[str, dict[str, Any]]:
    """Returns the `quantization_config` of each folder of the export with quantized layers."""
    schemes, names = {}, {}
    for tensor in model.tensors:
        kernel = tensor.path.removesuffix("/values")
        folder, name = file_name(tensor.name, layout)
        module = name.rpartition(".")[0]
        if kernel in model.schemes:
            schemes.setdefault(folder, {})[module] = model.schemes[kernel]
        if kernel in model.schemes or tensor.transform in (LINEAR, HEAD):
            names.setdefault(folder, set()).add(module)
    record = quantization_of(model.root) or {}
    size = record.get("group_size", GROUP_SIZE)
    return {folder: quantization_config(own, size, names[folder]) for folder, own in schemes.items()}


def _processor_files(config: OmniVinciConfig, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the files of the port's processor, in the form of transformers 5 and, for its parts, the one before."""
    seconds = math.ceil(config.max_sound_seconds)
    if seconds != config.max_sound_seconds:
        notes.append(
            f"processor_config.json says that sounds are cut at {seconds} s instead of {config.max_sound_seconds:g}: "
            "its loader reads whole seconds"
        )
    image, sound = _image_processor(config), _feature_extractor(config)
    processor = {
        "processor_class": _PROCESSOR,
        "image_processor": image,
        "feature_extractor": sound,
        "padding_side": "left",
        "image_aspect_ratio": "dynamic_s2",
        "s2_scales": list(config.s2_scales),
        "max_tiles": config.max_tiles,
        "num_video_frames": config.num_video_frames,
        "load_audio_in_video": True,
        "interleaved_vis_aud_in_video": config.temporal_group_seconds is not None,
        "mm_use_bos_eos_tokens": False,
        "audio_sampling_rate": config.sampling_rate,
        "audio_chunk_length": f"max_{seconds}",
        "audio_hop_length": config.audio_hop_length,
    }
    if config.temporal_group_seconds is not None:
        processor["interleaved_video_segment_duration"] = config.temporal_group_seconds
    return {
        "processor_config.json": processor,
        "preprocessor_config.json": {**image, **sound, "processor_class": _PROCESSOR},
    }


def _image_processor(config: OmniVinciConfig) -> dict[str, Any]:
    """Returns the settings of SigLIP's image processor: bicubic to one tile, then (x / 255 - 0.5) / 0.5."""
    side = config.vision.image_size
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _feature_extractor(config: OmniVinciConfig) -> dict[str, Any]:
    """Returns the settings of Whisper's feature extractor."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config.audio.num_mel_bins,
        "sampling_rate": config.sampling_rate,
        "hop_length": config.audio_hop_length,
        "n_fft": config.audio_n_fft,
        "chunk_length": 30,  # the processor pads sounds to multiples of 30 s
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Returns the files that a model directory may lack; its own ones take their place."""
    pad = tokenizer.token_id(_PAD)
    return {
        "generation_config.json": {
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.eos_id if pad is None else pad,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>" if pad is None else _PAD,
            "clean_up_tokenization_spaces": False,
        },
    }
