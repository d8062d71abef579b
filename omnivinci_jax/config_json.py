"""config.json of a model directory: the published fields, plus ours for what the published model leaves open."""

import json
from pathlib import Path

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.settings import from_mapping, to_mapping

_PARTS = {"text": "text_config", "vision": "vision_config", "audio": "audio_config"}
_MODEL_TYPES = {"text": "qwen2", "vision": "siglip_vision_model", "audio": "qwen2_audio_encoder"}


def write_config(config: OmniVinciConfig, path: Path) -> None:
    """Writes config.json."""
    values = {"model_type": "omnivinci_jax", **to_mapping(config)}
    for part, key in _PARTS.items():
        values[key] = {"model_type": _MODEL_TYPES[part], **values.pop(part)}
    path.write_text(json.dumps(values, indent=2) + "\n")


def read_config(path: Path) -> OmniVinciConfig:
    """Reads config.json; raises UserError for a file that is not one, ConfigError for what is not supported."""
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise UserError(
            f"{path}: no such file; a model directory holds config.json, tokenizer.json and params/"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if values.pop("model_type", None) != "omnivinci_jax":
        raise ConfigError(
            f"{path}: model_type is not 'omnivinci_jax'; convert PyTorch models with conversion.from_torch"
        )
    for part, key in _PARTS.items():
        section = values.pop(key, {})
        section.pop("model_type", None)
        values[part] = section
    return from_mapping(OmniVinciConfig, values, path.name)
