"""The models that parts come from, as published but tiny, and what transformers 4.57 writes for them.

    python tests/conversion/published.py > tests/conversion/transformers_4_57.json    # where transformers 4.57 is

records config.json and the tensors' names of each; `{n}` stands for the layers 0 and 1.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import (
    GemmaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperModel,
)
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

RECORDED = Path(__file__).with_name("transformers_4_57.json")
LAYERS = dict(num_hidden_layers=2, intermediate_size=32)
TEXT = dict(**LAYERS, vocab_size=96, hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
VISION = dict(**LAYERS, hidden_size=16, num_attention_heads=2, image_size=28, patch_size=14)
SOUND = dict(num_mel_bins=16, max_source_positions=20)
ENCODER = dict(**SOUND, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32)
TOKENS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)


def qwen2_decoder(tied: bool = False) -> Qwen2Config:
    return Qwen2Config(**TEXT, tie_word_embeddings=tied, rope_theta=1e6)


def llama_decoder(tied: bool = False) -> LlamaConfig:
    return LlamaConfig(**TEXT, tie_word_embeddings=tied, rms_norm_eps=1e-5)


def siglip() -> SiglipModel:
    text = SiglipTextConfig(**LAYERS, hidden_size=16, num_attention_heads=2, vocab_size=20)
    vision = SiglipVisionConfig(**VISION)
    return SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))


def paligemma() -> PaliGemmaForConditionalGeneration:
    text = GemmaConfig(**{**TEXT, "num_key_value_heads": 1}, head_dim=16)
    vision = SiglipVisionConfig(**VISION, vision_use_head=False)
    sizes = dict(projection_dim=64, hidden_size=64, image_token_index=5)
    parts = dict(text_config=text.to_dict(), vision_config=vision.to_dict())
    return PaliGemmaForConditionalGeneration(PaliGemmaConfig(**parts, **sizes))


def qwen2_audio() -> Qwen2AudioForConditionalGeneration:
    parts = dict(audio_config=Qwen2AudioEncoderConfig(**ENCODER).to_dict(), text_config=qwen2_decoder().to_dict())
    return Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(**parts, audio_token_index=5))


def audio_flamingo_3() -> torch.nn.Module:
    encoder = transformers.AudioFlamingo3EncoderConfig(**SOUND, **LAYERS, hidden_size=16, num_attention_heads=2)
    parts = dict(audio_config=encoder.to_dict(), text_config=qwen2_decoder().to_dict())
    config = transformers.AudioFlamingo3Config(**parts, audio_token_id=5)
    return transformers.AudioFlamingo3ForConditionalGeneration(config)


def whisper() -> WhisperConfig:
    decoder = dict(decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32, max_target_positions=8)
    return WhisperConfig(**ENCODER, **decoder, **TOKENS, vocab_size=20, decoder_start_token_id=1)


# Source: (part, model). Those of docs/conversion.md.
SOURCES: dict[str, tuple[str, Callable[[], torch.nn.Module]]] = {
    "Qwen2ForCausalLM": ("llm", lambda: Qwen2ForCausalLM(qwen2_decoder())),
    "Qwen2ForCausalLM, tied": ("llm", lambda: Qwen2ForCausalLM(qwen2_decoder(tied=True))),
    "Qwen2Model, tied": ("llm", lambda: Qwen2Model(qwen2_decoder(tied=True))),
    "LlamaForCausalLM": ("llm", lambda: LlamaForCausalLM(llama_decoder())),
    "LlamaForCausalLM, tied": ("llm", lambda: LlamaForCausalLM(llama_decoder(tied=True))),
    "LlamaModel, tied": ("llm", lambda: LlamaModel(llama_decoder(tied=True))),
    "Qwen2-Audio's decoder": ("llm", qwen2_audio),
    "Audio Flamingo 3's decoder": ("llm", audio_flamingo_3),
    "SiglipVisionModel": ("vision_tower", lambda: SiglipVisionModel(SiglipVisionConfig(**VISION))),
    "SiglipModel": ("vision_tower", siglip),
    "PaliGemma": ("vision_tower", paligemma),
    "Qwen2AudioEncoder": ("sound_tower", lambda: Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**ENCODER))),
    "Qwen2-Audio": ("sound_tower", qwen2_audio),
    "Audio Flamingo 3": ("sound_tower", audio_flamingo_3),
    "WhisperModel": ("sound_tower", lambda: WhisperModel(whisper())),
    "WhisperForConditionalGeneration": ("sound_tower", lambda: WhisperForConditionalGeneration(whisper())),
}


def record() -> dict[str, dict]:
    """Returns config.json and names of every source that the installed transformers has."""
    recorded = {}
    for source, (_, make) in SOURCES.items():
        if make is audio_flamingo_3 and not hasattr(transformers, "AudioFlamingo3Config"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            make().save_pretrained(folder)
            with safe_open(Path(folder) / "model.safetensors", "np") as file:
                names = sorted({re.sub(r"\blayers\.\d+\.", "layers.{n}.", name) for name in file.keys()})  # noqa: SIM118
            recorded[source] = {"names": names, "config": json.loads((Path(folder) / "config.json").read_text())}
    return recorded


if __name__ == "__main__":
    json.dump(record(), sys.stdout, indent=1)
    print()
