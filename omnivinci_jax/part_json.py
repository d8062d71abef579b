"""The config.json of a part (decoder, vision tower, sound tower), in transformers' keys, and the part's dataclass.

A part may stand alone or inside the config.json of a larger model: PaliGemma's `vision_config`, Audio Flamingo 3's
`audio_config`. Its `model_type` decides what the other keys mean; keys that it leaves out have transformers' defaults.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from omnivinci_jax.config import AFWhisperConfig, Qwen2Config, SiglipConfig, one_of
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.settings import from_mapping, to_mapping

_QWEN2_AUDIO = dict(
    d_model=1280,
    encoder_ffn_dim=5120,
    encoder_layers=32,
    encoder_attention_heads=20,
    num_mel_bins=128,
    max_source_positions=1500,
)
_WHISPER = dict(
    d_model=384,
    encoder_ffn_dim=1536,
    encoder_layers=4,
    encoder_attention_heads=6,
    num_mel_bins=80,
    max_source_positions=1500,
)
_QWEN2 = dict(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=22_016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    max_position_embeddings=32_768,
    tie_word_embeddings=False,
    qkv_bias=True,
)
_LLAMA = {
    **_QWEN2,
    "vocab_size": 32_000,
    "intermediate_size": 11_008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "qkv_bias": False,
}
_SIGLIP = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=224,
    patch_size=16,
    layer_norm_eps=1e-6,
)


class _Part(NamedTuple):
    """What a part's config.json may say.

    key: of the part in a larger model's config.json.
    type: its dataclass.
    defaults: transformers' defaults, by model_type; the first model_type is the one we write, where no other is known.
    fixed: (key, supported values) of settings that the part does not vary; an absent key is supported.
    spellings: other spellings of keys.
    """

    key: str
    type: type
    defaults: dict[str, dict[str, Any]]
    fixed: tuple[tuple[str, tuple], ...]
    spellings: dict[str, str]


_PARTS = {
    "text": _Part(
        "text_config",
        Qwen2Config,
        {"qwen2": _QWEN2, "llama": _LLAMA},
        (
            ("hidden_act", ("silu",)),
            ("use_sliding_window", (False,)),
            ("attention_bias", (False,)),
            ("mlp_bias", (False,)),
        ),
        {},
    ),
    "vision": _Part(
        "vision_config",
        SiglipConfig,
        {"siglip_vision_model": _SIGLIP},
        (("hidden_act", ("gelu_pytorch_tanh",)), ("num_channels", (3,))),
        {},
    ),
    "audio": _Part(
        "audio_config",
        AFWhisperConfig,
        {"qwen2_audio_encoder": _QWEN2_AUDIO, "audioflamingo3_encoder": _QWEN2_AUDIO, "whisper": _WHISPER},
        (("activation_function", ("gelu",)), ("scale_embedding", (False,))),
        {
            "d_model": "hidden_size",
            "encoder_ffn_dim": "intermediate_size",
            "encoder_layers": "num_hidden_layers",
            "encoder_attention_heads": "num_attention_heads",
        },
    ),
}


def part_from_json(part: str, values: Mapping[str, Any], where: str) -> Any:
    """Converts the config.json of a part, or of a larger model that has it, to the part's dataclass.

    Args:
        part: `text`, `vision` or `audio`.
        values: the contents; without a `model_type` every key must be there.
        where: starts every error.

    Raises:
        ConfigError: a model_type or value that is not supported, or a missing key.
    """
    key, kind, defaults, fixed, spellings = _PARTS[part]
    if isinstance(values.get(key), Mapping):
        values, where = values[key], f"{where}: {key}"
    model_type = values.get("model_type")
    if model_type is not None:
        one_of(f"{where}: model_type", model_type, tuple(defaults))
        where = f"{where} (model_type {model_type!r})"
    for name, supported in fixed:
        if name in values:
            one_of(f"{where}: {name}", values[name], supported)
    values = {**defaults.get(str(model_type), {}), **_spelled(values, spellings, where)}
    if part == "text":
        values = _decoder(values, where)
    names = [entry.name for entry in dataclasses.fields(kind)]
    for name in names:
        if name not in values:
            raise ConfigError(f"{where}: no {name}")
    return from_mapping(kind, {name: values[name] for name in names}, where)


def part_to_json(part: str, config: Any, published: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a part's dataclass to transformers' keys; keeps other keys of `published`, its config.json before."""
    key, _, defaults, _, spellings = _PARTS[part]
    if isinstance(published.get(key), Mapping):
        published = published[key]
    values = to_mapping(config)
    model_type = published.get("model_type", next(iter(defaults)))
    if part == "text":
        # An exported decoder's model_type says whether it has biases, as it does in transformers.
        biases = values.pop("qkv_bias")
        model_type = "qwen2" if biases else "llama"
        rope = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
        values |= {"rope_parameters": rope, "rope_theta": rope["rope_theta"], "rope_scaling": None}
    elif part == "vision":
        values["vision_use_head"] = False  # transformers would initialise a pooling head
    if published.get("model_type", model_type) != model_type:
        published = {}  # of another decoder
    kept = {key: value for key, value in published.items() if key not in spellings.values()}
    return {"model_type": model_type, **kept, **values}


def _spelled(values: Mapping[str, Any], spellings: Mapping[str, str], where: str) -> dict[str, Any]:
    """Adds the keys that `values` has in another spelling."""
    spelled = dict(values)
    for name, other in spellings.items():
        if other in values and values.get(name, values[other]) != values[other]:
            raise ConfigError(f"{where}: {name} is {values[name]} but {other} is {values[other]}: they must be equal")
        if other in values:
            spelled[name] = values[other]
    return spelled


def _decoder(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Checks and reads the keys whose form differs between versions of transformers."""
    rope_key = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    rope = values.get(rope_key) or {}
    type_key = "type" if "type" in rope and "rope_type" not in rope else "rope_type"
    one_of(f"{where}: {rope_key}.{type_key}", rope.get(type_key, "default"), ("default",))
    one_of(f"{where}: {rope_key}.partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,))
    for layer_type in values.get("layer_types") or ():
        one_of(f"{where}: layer_types", layer_type, ("full_attention",))
    values = dict(values)
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
    if values.get("num_key_value_heads", 0) is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if values.get("head_dim") is not None and {"hidden_size", "num_attention_heads"} <= values.keys():
        width, heads = values["hidden_size"], values["num_attention_heads"]
        if values["head_dim"] * heads != width:
            raise ConfigError(
                f"{where}: head_dim is {values['head_dim']}; supported: hidden_size / num_attention_heads = "
                f"{width} / {heads}"
            )
    return values
