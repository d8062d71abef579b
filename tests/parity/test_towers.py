"""Towers and decoder against transformers' modules, with random weights."""

import jax
import numpy as np
import pytest
import torch
from transformers import Qwen2AudioEncoderConfig, SiglipVisionConfig, SiglipVisionModel
from transformers import Qwen2Config as HFQwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from omnivinci_jax.config import AFWhisperConfig, Qwen2Config, SiglipConfig
from omnivinci_jax.models.af_whisper import AFWhisperTower
from omnivinci_jax.models.qwen2 import Qwen2
from omnivinci_jax.models.siglip import SiglipTower
from tests.parity.golden import CONFIG, assert_close, pixels
from tests.parity.torch_weights import params_from_torch

TOLERANCE = 1e-5


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Gives every parameter non-trivial random values: no zero biases, no norm scales of 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")))
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return module.eval()


def tensors(module: torch.nn.Module, prefix: str) -> dict[str, np.ndarray]:
    return {prefix + name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("layers", [2, 4])
def test_siglip_equals_transformers_second_to_last_layer(layers):
    shape = dict(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=3,
        image_size=42,
        patch_size=14,
    )
    hf = randomise(SiglipVisionModel(SiglipVisionConfig(**shape, vision_use_head=False, attn_implementation="eager")))
    config = SiglipConfig(**shape)
    images = np.random.default_rng(0).integers(0, 256, (2, 42, 42, 3), np.uint8)
    with torch.no_grad():
        normalised = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        expected = hf(normalised, output_hidden_states=True).hidden_states[-2].numpy()
    state = tensors(hf, "")
    state = {"vision_tower.vision_tower." + name.removeprefix("vision_model."): x for name, x in state.items()}
    params = params_from_torch(state, CONFIG.replace(vision=config, s2_scales=(42, 84, 126)))["vision_tower"]

    assert_close(jax.jit(SiglipTower(config).apply)({"params": params}, images), expected, TOLERANCE)


def test_golden_pixels_invert_the_normalisation():
    normalised = np.random.default_rng(0).uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32)
    back = (pixels(normalised) / 255 - 0.5) / 0.5
    assert_close(back.transpose(0, 3, 1, 2), normalised, 2e-7)


@pytest.mark.parametrize("layers", [1, 3])
def test_af_whisper_equals_qwen2_audio_encoder(layers):
    shape = dict(
        d_model=24, encoder_ffn_dim=40, encoder_layers=layers, encoder_attention_heads=3, num_mel_bins=16,
        max_source_positions=30,
    )  # fmt: skip
    hf = randomise(Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**shape, attn_implementation="eager")))
    config = AFWhisperConfig(**shape)
    windows = np.random.default_rng(0).normal(size=(3, config.window_frames, 16)).astype(np.float32)
    with torch.no_grad():
        expected = hf(torch.from_numpy(windows).transpose(1, 2)).last_hidden_state.numpy()
    params = params_from_torch(tensors(hf, "sound_tower."), CONFIG.replace(audio=config))["sound_tower"]

    actual = jax.jit(AFWhisperTower(config).apply)({"params": params}, windows)

    assert actual.shape == (3, 15, 24)
    assert_close(actual, expected, TOLERANCE)


def test_af_whisper_is_initialised_with_whispers_position_table():
    hf = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(d_model=24, encoder_layers=1, encoder_attention_heads=3))
    from transformers.models.whisper.modeling_whisper import sinusoids

    config = AFWhisperConfig(24, 40, 1, 3, 16, hf.config.max_source_positions)
    init = jax.jit(AFWhisperTower(config).init)(jax.random.key(0), np.zeros((1, config.window_frames, 16), np.float32))
    table = init["params"]["embed_positions"]["embedding"].unbox()
    assert_close(
        table, sinusoids(config.max_source_positions, 24).numpy(), 1e-4
    )  # torch computes the angles in float32


@pytest.mark.parametrize("tied", [False, True])
def test_qwen2_equals_transformers(tied):
    shape = dict(
        vocab_size=150, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    hf = randomise(Qwen2ForCausalLM(HFQwen2Config(**shape, rope_parameters=rope, attn_implementation="eager")))
    config = Qwen2Config(**shape, rope_theta=10_000.0)
    rng = np.random.default_rng(0)
    lengths = (9, 5, 3)
    rows = [rng.integers(0, 150, length) for length in lengths]
    with torch.no_grad():
        references = [hf(torch.from_numpy(row)[None], output_hidden_states=True) for row in rows]
    state = {f"llm.{name}": x for name, x in tensors(hf, "").items() if not (tied and name == "lm_head.weight")}
    model, params = Qwen2(config), params_from_torch(state, CONFIG.replace(text=config))["llm"]

    # Three conversations packed into one row, followed by padding.
    tokens = np.concatenate([*rows, np.zeros(3, int)])[None]
    positions = np.concatenate([*map(np.arange, lengths), np.zeros(3, int)])[None]
    segment_ids = np.repeat([1, 2, 3, 0], [*lengths, 3])[None]

    def forward(params, tokens, positions, segment_ids):
        embeddings = model.apply({"params": params}, tokens, method=model.embed)
        hidden = model.apply({"params": params}, embeddings, positions, segment_ids)
        return hidden, model.apply({"params": params}, hidden, method=model.logits)

    hidden, logits = jax.jit(forward)(params, tokens, positions, segment_ids)

    assert_close(hidden[0, :17], np.concatenate([out.hidden_states[-1][0] for out in references]), TOLERANCE)
    assert_close(logits[0, :17, :150], np.concatenate([out.logits[0] for out in references]), TOLERANCE)
    assert np.all(np.asarray(logits)[..., 150:] < -1e9)
    assert np.isfinite(np.asarray(hidden)).all()
