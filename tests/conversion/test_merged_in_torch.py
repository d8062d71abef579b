"""The merged export in PyTorch: modules of transformers' parts take it with strict key checks."""

import numpy as np
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2AudioEncoderConfig, SiglipVisionConfig, SiglipVisionModel
from transformers import Qwen2Config as HFQwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from conversion.from_torch import from_torch
from conversion.to_torch import to_torch
from omnivinci_jax.config import OmniVinciConfig
from tests.conversion.checkpoints import make, parameters
from tests.tiny import tiny_config


class Projector(nn.Module):
    """`layers` with parameters at the given places of a Sequential."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleDict({name.removeprefix("_"): layer for name, layer in layers.items()})


class Merged(nn.Module):
    """The parts under the names of the merged layout."""

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
        self.llm = Qwen2ForCausalLM(
            HFQwen2Config(
                vocab_size=text.vocab_size, hidden_size=text.hidden_size, intermediate_size=text.intermediate_size,
                num_hidden_layers=text.num_hidden_layers, num_attention_heads=text.num_attention_heads,
                num_key_value_heads=text.num_key_value_heads, tie_word_embeddings=text.tie_word_embeddings,
            )
        )  # fmt: skip
        width, features = text.hidden_size, 4 * len(config.s2_scales) * vision.hidden_size
        self.mm_projector = Projector(
            _1=nn.LayerNorm(features), _2=nn.Linear(features, width), _4=nn.Linear(width, width)
        )
        self.sound_mm_projector = Projector(_0=nn.Linear(audio.d_model, width), _2=nn.Linear(width, width))


def test_it_loads_strictly(tmp_path):
    config = tiny_config()
    from_torch(make(tmp_path / "source", "released", "F32", config), tmp_path / "model")
    to_torch(tmp_path / "model", tmp_path / "merged", layout="merged")
    module = Merged(config)
    module.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"), strict=True)
    leaf = parameters(tmp_path / "model")["llm/layers/mlp/up_proj/kernel"]
    weight = module.llm.model.layers[2].mlp.up_proj.weight.detach().numpy()
    assert weight.tobytes() == np.ascontiguousarray(leaf[2].T).tobytes()
