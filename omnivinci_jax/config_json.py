"""config.json: converts between the published forms and OmniVinciConfig.

Reads two forms. The released form stores the encoders as JSON strings (or objects), and a config.json for each part in
its folder or under `llm_cfg`, `vision_tower_cfg` and `sound_tower_cfg`. The merged form of the Transformers port has
`text_config`, `vision_config` and `audio_config`; model directories use it. Settings without a published key are under
`omnivinci_jax`. Keys that do not affect the model are kept.

A published config.json does not say how its code samples frames and pads sound, or which of two formulas `period_fix`
means: `_publisher` knows it from the form and from `model_type`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from omnivinci_jax.config import OmniAlignConfig, OmniVinciConfig, SiglipConfig, TimeEmbeddingConfig, one_of
from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.part_json import part_from_json, part_to_json
from omnivinci_jax.settings import from_mapping, to_mapping

UNPUBLISHED = "omnivinci_jax"
# Part: (key in the merged form and in larger models, folder of the released form, legacy key).
PARTS = {
    "text": ("text_config", "llm", "llm_cfg"),
    "vision": ("vision_config", "vision_tower", "vision_tower_cfg"),
    "audio": ("audio_config", "sound_tower", "sound_tower_cfg"),
}
# (key, supported values) of settings that the model does not vary; an absent key is supported.
_FIXED = (
    ("dynamic_s2", (True,)),
    ("mm_vision_select_layer", (-2,)),
    ("mm_vision_select_feature", ("cls_patch",)),
    ("s2_resize_output_to_scale_idx", (-1,)),
    ("multimodal_projector_bias", (True,)),
    ("projector_bias", (True,)),
    ("mm_use_bos_eos_tokens", (False, None)),
)
_PROJECTORS = (
    ("mm_projector", ("mlp_downsample", "mlp_downsample_2x2_fix")),
    ("sound_mm_projector", ("mlp",)),
)
# period_fix of an encoder: time scheme. "rote" and "learned" are not published.
_SCHEMES = {
    "shortest": "crte",
    "MTCT": "crte",
    "longest": "longest",
    "True": "axial",
    "False": "axial_reversed",
    "rote": "rote",
    "learned": "learned",
}
# Audio-Visual Flamingo gives some values another formula; its default for "MTCT" is "longest".
_SUCCESSOR = "audiovisualflamingo"
_SUCCESSOR_SCHEMES = {
    **_SCHEMES,
    "shortest": "harmonic_shortest",
    "longest": "harmonic_longest",
    "MTCT": "harmonic_longest",
}
# Publisher: (name, value of `frame_sampling`).
_PUBLISHERS = {
    "ours": ("omnivinci_jax", "uniform"),
    "released": ("OmniVinci", "released"),
    "successor": ("Audio-Visual Flamingo", "port"),
}
_ENCODERS = {"image": "BasicImageEncoder", "video": "TSPVideoEncoder", "sound": "BasicSoundEncoder"}


def read_config(path: epath.PathLike) -> OmniVinciConfig:
    """Reads config.json of a model directory or of a published checkpoint in either form.

    Raises:
        UserError: no such file, or not JSON.
        ConfigError: an unsupported value, or a missing key.
    """
    return from_json(read_json(path), str(path))


def write_config(
    config: OmniVinciConfig,
    path: epath.PathLike,
    base: Mapping[str, Any] | None = None,
    untrained: Iterable[str] = (),
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json of a model directory; for the arguments see `to_json`."""
    epath.Path(path).write_text(json.dumps(to_json(config, base, untrained, quantization), indent=2) + "\n")


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """Reads config.json in the merged form; merges parts from sibling folders or legacy keys into it."""
    path = epath.Path(path)
    root = _load(path, "a model directory holds config.json, tokenizer.json and params/")
    for key, folder, legacy in PARTS.values():
        beside = path.parent / folder / "config.json"
        if key not in root and beside.is_file():
            root[key] = _load(beside)
            root.setdefault(legacy, folder)  # marks the released form
        elif key not in root and isinstance(root.get(legacy), Mapping):
            root[key] = dict(root[legacy])
    for name, _ in _PROJECTORS:
        beside = path.parent / name / "config.json"
        if f"{name}_cfg" not in root and beside.is_file():
            root[f"{name}_cfg"] = _load(beside)
    return root


def read_part(part: str, path: epath.PathLike) -> Any:
    """Reads the config of one part (`text`, `vision` or `audio`) from its own config.json or that of a larger model."""
    return part_from_json(part, _load(epath.Path(path)), str(path))


def from_json(root: Mapping[str, Any], where: str = "config.json") -> OmniVinciConfig:
    """Converts a config.json in the merged form to an OmniVinciConfig; `where` starts every error."""
    _check_root(root, where)
    parts = {}
    for part, (key, folder, legacy) in PARTS.items():
        if not isinstance(root.get(key), Mapping):
            raise ConfigError(f"{where}: no {key}, {legacy} or {folder}/config.json")
        parts[part] = part_from_json(part, root[key], f"{where}: {key}")
    unpublished = dict(root.get(UNPUBLISHED, {}))
    for name in ("untrained", "quantization"):  # of the parameters, not of the configuration
        unpublished.pop(name, None)
    video, sound = (_encoder(root, name, where) for name in ("video", "sound"))
    chunk = str(root.get("audio_chunk_length", "max_3600"))
    publisher = _publisher(root)
    values = dict(
        frame_sampling=_PUBLISHERS[publisher][1],
        s2_scales=_scales(root, parts["vision"], where),
        max_tiles=root.get("max_tiles"),
        pool_sizes=video.get("pool_sizes", [[1, 1, 1]]),
        num_video_frames=root.get("num_video_frames"),
        fps=(root["fps"] or math.inf) if "fps" in root else None,
        audio_compression="none",
        audio_hop_length=root.get("audio_hop_length"),
        sampling_rate=root.get("audio_sampling_rate"),
        max_sound_seconds=_number(chunk.removeprefix("max_"), f"{where}: audio_chunk_length"),
        temporal_group_seconds=root.get("interleaved_video_segment_duration"),
    )
    values = {key: value for key, value in values.items() if value is not None}
    if not root.get("interleaved_vis_aud_in_video", True):
        values["temporal_group_seconds"] = None
    times = {f"{kind}_time": unpublished.pop(f"{kind}_time", {}) for kind in ("video", "sound")}
    times = {
        name: _time(encoder, times[name], publisher, f"{where}: {name.removesuffix('_time')}_encoder")
        for name, encoder in (("video_time", video), ("sound_time", sound))
    }
    align = OmniAlignConfig(num_heads=parts["text"].num_attention_heads)
    values["omni_align"] = {**to_mapping(align), **unpublished.pop("omni_align", {})}
    values |= {name: to_mapping(section) for name, section in (parts | times).items()}
    config = from_mapping(OmniVinciConfig, values | unpublished, where)
    # The published processors pad sound to 30 s, which is what a window of their tower holds at 10 ms a mel frame.
    padding = config.audio.window_frames / 100
    if publisher == "ours" or padding * config.sampling_rate == config.window_samples:
        return config
    return config.replace(audio_padding_seconds=padding)


def describe_publisher(root: Mapping[str, Any], config: OmniVinciConfig) -> str:
    """Describes how a config.json in the merged form was read: whose time embedding and whose frames."""
    publisher = _publisher(root)
    return (
        f"read as {_PUBLISHERS[publisher][0]} (model_type {root.get('model_type')!r}): time embedding "
        f"{config.video_time.scheme} for video and {config.sound_time.scheme} for sound, frame_sampling "
        f"{config.frame_sampling}"
        + ("; set model_type to 'omnivinci' if these are OmniVinci weights" if publisher == "successor" else "")
    )


def untrained_modules(root: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the modules ("omni_align", ...) of a config.json that were initialised and never trained."""
    return tuple(root.get(UNPUBLISHED, {}).get("untrained", ()))


def quantization_of(root: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns how the parameters of a config.json were quantized (quantize/recipes.py), or None if they were not."""
    return root.get(UNPUBLISHED, {}).get("quantization")


def to_json(
    config: OmniVinciConfig,
    base: Mapping[str, Any] | None = None,
    untrained: Iterable[str] = (),
    quantization: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Converts to the merged form.

    Args:
        config: the model.
        base: a published config.json whose keys that do not affect the model are kept.
        untrained: modules that were initialised and never trained.
        quantization: how the parameters were quantized.
    """
    root = {"model_type": "audiovisualflamingo", **(base or {})}
    for part, (key, _, legacy) in PARTS.items():
        root[key] = part_to_json(part, getattr(config, part), root.get(key, {}))
        root.pop(legacy, None)
    encoders = {"image": {}, "video": {"pool_sizes": to_mapping(config.pool_sizes)}, "sound": {}}
    for kind, target in _ENCODERS.items():
        old = root.get(f"{kind}_encoder", {})
        old = json.loads(old) if isinstance(old, str) else old
        root[f"{kind}_encoder"] = {"_target_": target, **old, **encoders[kind]}
    for kind in ("video", "sound"):
        root[f"{kind}_encoder"] |= _time_json(getattr(config, f"{kind}_time"))
    grouped = config.temporal_group_seconds is not None
    root |= dict(
        dynamic_s2=True,
        image_aspect_ratio="dynamic_s2",
        s2_scales=list(config.s2_scales),
        s2_max_split_size=config.s2_scales[0],
        s2_resize_output_to_scale_idx=-1,
        mm_vision_select_layer=-2,
        mm_vision_select_feature="cls_patch",
        multimodal_projector_bias=True,
        projector_bias=True,
        max_tiles=config.max_tiles,
        num_video_frames=config.num_video_frames,
        fps=None if math.isinf(config.fps) else config.fps,
        audio_sampling_rate=config.sampling_rate,
        audio_hop_length=config.audio_hop_length,
        audio_chunk_length=f"max_{config.max_sound_seconds:.17g}",
        load_audio_in_video=True,
        interleaved_vis_aud_in_video=grouped,
    )
    if grouped:
        root["interleaved_video_segment_duration"] = config.temporal_group_seconds
    root[UNPUBLISHED] = {
        "audio_compression": config.audio_compression,
        "audio_n_fft": config.audio_n_fft,
        "audio_padding_seconds": config.audio_padding_seconds,
        "frame_sampling": config.frame_sampling,
        "omni_align": to_mapping(config.omni_align),
        **{
            name: {
                "theta": time.theta,
                "pair_angles": time.pair_angles,
                **({"scheme": time.scheme} if time.harmonic else {}),
            }
            for name, time in (("video_time", config.video_time), ("sound_time", config.sound_time))
        },
    }
    if names := sorted(untrained):
        root[UNPUBLISHED]["untrained"] = names
    if quantization:
        root[UNPUBLISHED]["quantization"] = dict(quantization)
    return root


def to_released(root: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Converts the merged form to the released form: file contents by path, encoders as JSON, scales as one string."""
    root = dict(root)
    files = {f"{folder}/config.json": root.pop(key) for key, folder, _ in PARTS.values()}
    for kind in _ENCODERS:
        root[f"{kind}_encoder"] = json.dumps(root[f"{kind}_encoder"])
    for name, types in _PROJECTORS:
        kind = root.pop(f"{name}_cfg", {}).get(f"{name}_type", types[0])
        files[f"{name}/config.json"] = {f"{name}_type": kind}
    root["s2_scales"] = ",".join(map(str, root["s2_scales"]))
    return {"config.json": root, **files}


def _load(path: epath.Path, hint: str = "") -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: no such file" + (f"; {hint}" if hint else "")) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    return values


def _check_root(root: Mapping[str, Any], where: str) -> None:
    for key, supported in _FIXED:
        if key in root:
            one_of(f"{where}: {key}", root[key], supported)
    for name, types in _PROJECTORS:
        # `mm_projector` is a type in training configurations and a folder in published ones.
        section = root.get(f"{name}_cfg", root.get(name))
        kind = section.get(f"{name}_type") if isinstance(section, Mapping) else section
        if kind is not None and not (isinstance(section, str) and "/" in section):
            one_of(f"{where}: {name}_type", kind, types)
    if not root.get("interleaved_vis_aud_in_video", True) and UNPUBLISHED not in root:
        raise ConfigError(f"{where}: interleaved_vis_aud_in_video is False; supported: True")


def _scales(root: Mapping[str, Any], vision: SiglipConfig, where: str) -> list[int]:
    scales = root.get("s2_scales", [vision.image_size * n for n in (1, 2, 3)])
    scales = scales.split(",") if isinstance(scales, str) else scales
    return sorted(int(_number(scale, f"{where}: s2_scales")) for scale in scales)


def _encoder(root: Mapping[str, Any], kind: str, where: str) -> Mapping[str, Any]:
    key = f"{kind}_encoder"
    values = root.get(key)
    if isinstance(values, str):
        try:
            values = json.loads(values)
        except ValueError as error:
            raise ConfigError(f"{where}: {key} is not JSON: {error}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: no {key}")
    one_of(f"{where}: {key}._target_", values.get("_target_", _ENCODERS[kind]).rsplit(".", 1)[-1], (_ENCODERS[kind],))
    for name in ("start_tokens", "end_tokens", "sep_tokens"):
        # In the released code an absent end token means a newline; null and "None" mean no token.
        value = values.get(name, "\n" if name == "end_tokens" else None)
        one_of(f"{where}: {key}.{name}", value, (None, "None"))
    return values


def _publisher(root: Mapping[str, Any]) -> str:
    """Returns whose checkpoint a config.json in the merged form describes: a key of `_PUBLISHERS`."""
    if UNPUBLISHED in root:
        return "ours"
    released_form = any(legacy in root for _, _, legacy in PARTS.values())
    return "successor" if root.get("model_type") == _SUCCESSOR and not released_form else "released"


def _time(
    encoder: Mapping[str, Any], unpublished: Mapping[str, Any], publisher: str, where: str
) -> TimeEmbeddingConfig:
    one_of(f"{where}.embed_time", encoder.get("embed_time", "False"), ("True", "False", True, False))
    embeds = encoder.get("embed_time", "False") in ("True", True)
    fix = str(encoder.get("period_fix", "False"))
    one_of(f"{where}.period_fix", fix, tuple(_SCHEMES))
    published = dict(
        scheme=(_SUCCESSOR_SCHEMES if publisher == "successor" else _SCHEMES)[fix] if embeds else "none",
        max_time=encoder.get("max_time"),
        trope_dim=encoder.get("trope_dim", 128),
        time_embed_type=encoder.get("time_embed_type", "pixel"),
    )
    return from_mapping(TimeEmbeddingConfig, published | dict(unpublished), where)


def _time_json(time: TimeEmbeddingConfig) -> dict[str, Any]:
    names = _SUCCESSOR_SCHEMES if time.harmonic else _SCHEMES
    fix = next((fix for fix, scheme in names.items() if scheme == time.scheme), "shortest")
    return {
        "embed_time": "False" if time.scheme == "none" else "True",
        "period_fix": fix,
        "max_time": time.max_time,
        "trope_dim": time.trope_dim,
        "time_embed_type": time.time_embed_type,
        "start_tokens": None,
        "end_tokens": "None",
    }


def _number(value: Any, key: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key} is {value!r}: must be a number") from None
