"""The source of a conversion: its configuration, and a lazy leaf for every parameter.

A source is one checkpoint in either layout, separate parts (a Qwen2.5, a SigLIP, an AF-Whisper), or a checkpoint with
some parts replaced. Opening it reads headers only, and the tables of a tied decoder whose file has both.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from conversion.compressed import leaf_shapes, quantized_tensors, scheme_of
from conversion.gguf_file import GgufFile, GgufTensor
from conversion.layouts import PARTS, UNPUBLISHED, drop_tied_head, read_layout, read_part
from conversion.mapping import SAME, Tensor, tensors, unpublished_leaves
from conversion.tensor_files import DTYPES, StoredTensor
from conversion.tokenizer import SourceTokenizer, read_tokenizer, with_media_tokens
from omnivinci_jax.config import OmniAlignConfig, OmniVinciConfig, one_of
from omnivinci_jax.config_json import PARTS as CONFIG_PARTS
from omnivinci_jax.config_json import describe_publisher, from_json, quantization_of, read_json, untrained_modules
from omnivinci_jax.config_json import read_part as read_part_config
from omnivinci_jax.errors import UserError
from omnivinci_jax.leaves import LazyLeaf, Pieces
from omnivinci_jax.model_dir import in_modules
from omnivinci_jax.models.initialization import boxed_params, parameter_shapes
from omnivinci_jax.models.quantized import Scheme
from omnivinci_jax.part_json import part_from_json

DTYPE_NAMES = {"float32": DTYPES["F32"], "float16": DTYPES["F16"], "bfloat16": DTYPES["BF16"]}
_CONFIG_FIELDS = {"llm": "text", "vision_tower": "vision", "sound_tower": "audio"}
_PROJECTORS = ("mm_projector.", "sound_mm_projector.")
_TABLES = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")


class Source(NamedTuple):
    """A model to convert.

    base: config.json of the checkpoint; keys that this project does not use are kept.
    leaves: by path.
    tokenizer: None if the source has none.
    untrained: modules that were initialised, because the source does not have them.
    notes: what was initialised, skipped or added, for the user.
    quantization: how the source was quantized; None if it was not.
    """

    config: OmniVinciConfig
    base: Mapping[str, Any] | None
    leaves: dict[str, LazyLeaf]
    tokenizer: SourceTokenizer | None
    untrained: tuple[str, ...]
    notes: list[str]
    quantization: dict[str, Any] | None


class ExtendedTable(NamedTuple):
    """A vocabulary table with new rows, each the mean of the old ones."""

    table: StoredTensor | GgufTensor
    rows: int

    @property
    def file(self) -> Path:
        """The file of the old rows."""
        return self.table.file

    @property
    def dtype(self) -> np.dtype:
        """Type of the old rows."""
        return self.table.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and width."""
        return self.rows, *self.table.shape[1:]

    def read(self) -> np.ndarray:
        """Reads all rows."""
        old = self.table.read()
        mean = old.mean(axis=0, dtype=np.float32).astype(old.dtype)
        return np.concatenate([old, np.broadcast_to(mean, (self.rows - len(old), *mean.shape))])


AnyTensor = StoredTensor | GgufTensor | ExtendedTable


def open_source(
    folder: Path | None,
    parts: Mapping[str, Path] | None = None,
    tokenizer: Path | None = None,
    dtype: str | None = None,
) -> Source:
    """Opens the source of a conversion.

    Args:
        folder: a checkpoint in the released or merged layout; None if all three `parts` are given.
        parts: folders of parts (`llm`, `vision_tower`, `sound_tower`) that are missing in `folder` or replace its own;
            each holds the part or a larger model. `llm` may be a GGUF file.
        tokenizer: folder of the tokenizer, if it is not in the checkpoint.
        dtype: type of all parameters; None keeps their types.

    Raises:
        UserError: a damaged file, or a tensor that is missing, unknown or of the wrong shape; names key and file.
        ConfigError: an unsupported configuration.
    """
    parts = dict(parts or {})
    if folder is None and (missing := [part for part in _CONFIG_FIELDS if part not in parts]):
        raise UserError(f"without a source checkpoint, --{missing[0]} is required")
    gguf = GgufFile(parts["llm"]) if "llm" in parts and parts["llm"].suffix == ".gguf" else None
    base = read_json(folder / "config.json") if folder else None
    config = _configuration(folder, base, parts, gguf)
    left_out = untrained_modules(base or {})
    found, notes = _collect_tensors(folder, parts, gguf, left_out)
    if config.text.tie_word_embeddings:
        drop_tied_head(found)
    elif not {"llm.lm_head.weight", "llm.lm_head.weight_packed"} & found.keys():
        raise UserError(
            f"{parts.get('llm', folder)}: no lm_head.weight, but tie_word_embeddings is False in config.json; a base "
            "model is saved without its head: convert the model with it (…ForCausalLM)"
        )
    if base:
        replaced = [CONFIG_PARTS[_CONFIG_FIELDS[part]][0] for part in parts]
        base = {key: value for key, value in base.items() if key not in (*replaced, "quantization_config")}

    if gguf and tokenizer is None:
        pretrained = gguf.tokenizer()
        found_tokenizer = with_media_tokens(pretrained.backend_tokenizer, pretrained)
    else:
        found_tokenizer = read_tokenizer(tokenizer, [parts.get("llm"), folder, folder and folder / "llm"])
    if found_tokenizer is None:
        notes.append("no tokenizer.json in the source; add a tokenizer beside config.json before you load the model")
    else:
        notes += [f"{token} is new in the tokenizer, with id {token_id}" for token, token_id in found_tokenizer.added]
        config = _extend_vocabulary(config, found_tokenizer.size, found, notes)

    shapes = parameter_shapes(config)
    expected = list(tensors(config, shapes))
    unpublished = unpublished_leaves(config, shapes)
    initialised = {path for name, path in unpublished.items() if f"{UNPUBLISHED}.{name}" not in found}
    if folder is None:
        initialised |= {tensor.path for tensor in expected if tensor.name.startswith(_PROJECTORS)}
    for module in left_out:
        own = [tensor for tensor in expected if in_modules(tensor.path, [module])]
        if not any(tensor.name in found for tensor in own):
            initialised |= {tensor.path for tensor in own}
    expected = [tensor for tensor in expected if tensor.path not in initialised]
    expected, quantized = _with_quantized(expected, found, shapes)
    stored = {name: path for name, path in unpublished.items() if path not in initialised}
    expected += [Tensor(f"{UNPUBLISHED}.{name}", shapes[path], path, None, SAME) for name, path in stored.items()]
    _check_tensors(expected, found, folder, parts)
    untrained = _whole_modules(initialised, shapes)
    if untrained:
        notes.append(f"initialised, because the source has no such tensors: {', '.join(untrained)}")

    target_dtype = DTYPE_NAMES[dtype] if dtype else None
    by_leaf: dict[str, list[Tensor]] = {}
    for tensor in expected:
        if not tensor.name.endswith(".weight_shape"):
            by_leaf.setdefault(tensor.path, []).append(tensor)
    leaves = {path: _stored_leaf(shapes[path], group, found, target_dtype) for path, group in by_leaf.items()}
    for path, (shape, kind) in quantized.items():
        leaves[path] = dataclasses.replace(leaves[path], shape=shape, dtype=kind)
    embedding = leaves["llm/embed_tokens/embedding"].dtype
    leaves |= _initialised_leaves(config, initialised, shapes, target_dtype or embedding)
    if base is not None:
        notes.insert(0, describe_publisher(base, config))
    quantization = (quantization_of(base or {}) or {"name": "compressed-tensors"}) if quantized else None
    return Source(config, base, leaves, found_tokenizer, untrained, notes, quantization)


def _with_quantized(
    expected: list[Tensor], found: Mapping[str, AnyTensor], shapes: dict[str, tuple[int, ...]]
) -> tuple[list[Tensor], dict[str, tuple[tuple[int, ...], np.dtype]]]:
    """Replaces the tensors of kernels that the source has quantized; returns also their leaves' shapes and types.

    Raises:
        UserError: a kernel is quantized in some layers, or not as in the others.
    """
    types = {name: tensor.dtype for name, tensor in found.items()}
    kinds: dict[str, tuple[Scheme, int] | None] = {}
    replaced, leaves = [], {}
    for tensor in expected:
        scheme = scheme_of(tensor.name, types)
        kind = (scheme, found[f"{tensor.name}_scale"].shape[1]) if scheme else None
        if kinds.setdefault(tensor.path, kind) != kind:
            raise UserError(f"{tensor.name}: quantized otherwise than the layers before; all layers must agree")
        replaced += quantized_tensors(tensor, *kind) if kind else [tensor]
        if kind:
            ends = leaf_shapes(shapes[tensor.path], *kind)
            leaves |= {f"{tensor.path}/{end}": shape_and_type for end, shape_and_type in ends.items()}
    shapes |= {path: shape for path, (shape, _) in leaves.items()}
    return replaced, leaves


def _configuration(
    folder: Path | None, base: Mapping[str, Any] | None, parts: dict[str, Path], gguf: GgufFile | None
) -> OmniVinciConfig:
    one_of("part", next((part for part in parts if part not in _CONFIG_FIELDS), "llm"), tuple(_CONFIG_FIELDS))
    sections = {}
    for part, path in parts.items():
        field = _CONFIG_FIELDS[part]
        if gguf and part == "llm":
            sections[field] = part_from_json(field, gguf.config(), str(path))
        else:
            sections[field] = read_part_config(field, path / "config.json")
    if "vision" in sections:
        sections["s2_scales"] = tuple(sections["vision"].image_size * n for n in (1, 2, 3))
    if folder is None:
        align = OmniAlignConfig(num_heads=sections["text"].num_attention_heads)
        return OmniVinciConfig(**sections, omni_align=align)
    assert base is not None
    return from_json(base, str(folder / "config.json")).replace(**sections)


def _collect_tensors(
    folder: Path | None, parts: dict[str, Path], gguf: GgufFile | None, left_out: tuple[str, ...]
) -> tuple[dict[str, AnyTensor], list[str]]:
    found: dict[str, AnyTensor] = {**read_layout(folder, left_out)} if folder else {}
    notes = []
    for part, path in parts.items():
        found = {name: tensor for name, tensor in found.items() if not name.startswith(PARTS[part][0])}
        if gguf and part == "llm":
            found |= gguf.tensors()
            continue
        part_tensors, unused = read_part(path, part)
        found |= part_tensors
        if unused:
            notes.append(f"{path}: skipped {len(unused)} tensors that {part} does not use ({unused[0]}, …)")
    return found, notes


def _extend_vocabulary(config: OmniVinciConfig, size: int, found: dict, notes: list[str]) -> OmniVinciConfig:
    """Adds rows to the vocabulary tables if the tokenizer has more ids."""
    rows = config.text.vocab_size
    if size <= rows:
        return config
    for name in _TABLES:
        if name in found and found[name].shape[0] == rows:
            found[name] = ExtendedTable(found[name], size)
    notes.append(f"the embedding grows from {rows} to {size} rows; new rows are the mean of the old ones")
    return config.replace(text=dataclasses.replace(config.text, vocab_size=size))


def _whole_modules(chosen: set[str], paths: Iterable[str]) -> tuple[str, ...]:
    """Returns the largest modules of `paths` that have no parameters but the `chosen` ones."""
    others = {path for path in paths if path not in chosen}
    modules = set()
    for path in chosen:
        names = path.split("/")
        prefixes = ("/".join(names[:depth]) for depth in range(1, len(names) + 1))
        modules.add(next(prefix for prefix in prefixes if not any(in_modules(other, [prefix]) for other in others)))
    return tuple(sorted(modules))


def _check_tensors(
    expected: Iterable[Tensor], found: Mapping[str, AnyTensor], folder: Path | None, parts: Mapping[str, Path]
) -> None:
    names = set()
    for tensor in expected:
        names.add(tensor.name)
        if tensor.name not in found:
            source = parts.get(tensor.name.split(".")[0], folder)
            raise UserError(f"{source}: tensor {tensor.name} is missing")
        stored = found[tensor.name]
        if tuple(stored.shape) != tensor.shape:
            raise UserError(
                f"{stored.file}: {tensor.name} has shape {tuple(stored.shape)}, but config.json expects {tensor.shape}"
            )
        if tensor.dtype is None and stored.dtype not in DTYPES.values():
            raise UserError(f"{stored.file}: {tensor.name} has type {stored.dtype}; supported: {', '.join(DTYPES)}")
    for name, stored in found.items():
        if name not in names:
            raise UserError(f"{stored.file}: this model has no tensor {name}")


def _stored_leaf(
    shape: tuple[int, ...],
    group: list[Tensor],
    found: Mapping[str, AnyTensor],
    dtype: np.dtype | None,
) -> LazyLeaf:
    types = {found[tensor.name].dtype for tensor in group}
    if group[0].dtype is not None:  # of a quantized layer
        dtype = group[0].dtype
    if dtype is None and len(types) > 1:
        raise UserError(f"{group[0].name} has different types in different layers; choose one with --dtype")
    dtype = dtype or types.pop()

    def pieces() -> Pieces:
        for tensor in group:
            array = found[tensor.name].read()
            yield tensor.index, tensor.transform.to_tree(array.astype(dtype, copy=False))

    return LazyLeaf(shape, dtype, pieces)


def _initialised_leaves(config: OmniVinciConfig, paths: set[str], shapes: dict, dtype: np.dtype) -> dict[str, LazyLeaf]:
    """Returns randomly initialised leaves, computed when the first one is read; XLA drops the rest of the model."""

    @jax.jit
    def make(key: jax.Array) -> dict[str, jax.Array]:
        params = nn.meta.unbox(boxed_params(config, key))
        everything = cast("dict[str, jax.Array]", flatten_dict(params, sep="/"))
        return {path: everything[path].astype(dtype) for path in paths}

    made: dict[str, jax.Array] = {}

    def pieces(path: str) -> Pieces:
        if not made:
            made.update(make(jax.random.PRNGKey(0)))
        yield None, np.asarray(made[path])

    return {path: LazyLeaf(shapes[path], dtype, lambda path=path: pieces(path)) for path in sorted(paths)}
