"""The model from transformers' modules, with the names of the merged layout."""

from torch import nn
from transformers import Qwen2AudioEncoderConfig, SiglipVisionConfig, SiglipVisionModel
from transformers import Qwen2Config as HFQwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from omnivinci_jax.config import OmniVinciConfig


class Projector(nn.Module):
    """`layers` named by their index in a Sequential."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleDict({name.removeprefix("_"): layer for name, layer in layers.items()})


class Merged(nn.Module):
    """All modules of a checkpoint, with random weights."""

    def __init__(self, config: OmniVinciConfig):
        super().__init__()
        vision, audio, text = config.vision, config.audio, config.text
        siglip = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=vision.hidden_size, intermediate_size=vision.intermediate_size,
                num_hidden_layers=vision.num_hidden_layers, num_attention_heads=vision.num_attention_heads,
                image_size=vision.image_size, patch_size=vision.patch_size, vision_use_head=False,
            )
        )  # fmt: skip
        self.vision_tower = nn.Module()
        self.vision_tower.vision_tower = getattr(siglip, "vision_model", siglip)
        self.sound_tower = Qwen2AudioEncoder(
            Qwen2AudioEncoderConfig(
                d_model=audio.d_model, encoder_ffn_dim=audio.encoder_ffn_dim, encoder_layers=audio.encoder_layers,
                encoder_attention_heads=audio.encoder_attention_heads, num_mel_bins=audio.num_mel_bins,
                max_source_positions=audio.max_source_positions,
            )
        )  # fmt: skip
        rope = {"rope_type": "default", "rope_theta": text.rope_theta}
        self.llm = Qwen2ForCausalLM(
            HFQwen2Config(
                vocab_size=text.vocab_size, hidden_size=text.hidden_size, intermediate_size=text.intermediate_size,
                num_hidden_layers=text.num_hidden_layers, num_attention_heads=text.num_attention_heads,
                num_key_value_heads=text.num_key_value_heads, tie_word_embeddings=text.tie_word_embeddings,
                rope_parameters=rope,
            )
        )  # fmt: skip
        width, features = text.hidden_size, 4 * len(config.s2_scales) * vision.hidden_size
        self.mm_projector = Projector(
            _1=nn.LayerNorm(features), _2=nn.Linear(features, width), _4=nn.Linear(width, width)
        )
        self.sound_mm_projector = Projector(_0=nn.Linear(audio.d_model, width), _2=nn.Linear(width, width))
