"""The two published checkpoint layouts: files and tensor names.

The released layout has one folder per part, the merged layout one folder for all. The rest of the package uses the
merged names. Modules that only this project has (OmniAlignNet, learned time embeddings, the convolution before the
sound projector) go into a separate folder in both layouts, so loaders of the published parts never see them.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from conversion.tensor_files import INDEX, SINGLE, StoredTensor, is_checkpoint, stored_tensors
from omnivinci_jax.errors import UserError

Layout = Literal["released", "merged"]
UNPUBLISHED = "omnivinci_jax"  # folder of the unpublished tensors, and the prefix of their names
# Part: (prefix in the merged layout, prefix in the part's folder of the released layout).
PARTS = {
    "llm": ("llm.", ""),
    "vision_tower": ("vision_tower.vision_tower.", "vision_model."),
    "sound_tower": ("sound_tower.", ""),
    "mm_projector": ("mm_projector.", ""),
    "sound_mm_projector": ("sound_mm_projector.", ""),
}
# A tensor of each part that all published forms have. What precedes its name there precedes all names of the part:
# nothing in a Qwen2Model, "model." in a Qwen2ForCausalLM, "vision_tower.vision_model." in PaliGemma of transformers 4.
_LANDMARKS = {
    "llm": ("model.", "embed_tokens.weight"),
    "vision_tower": ("", "embeddings.patch_embedding.weight"),
    "sound_tower": ("", "conv1.weight"),
}
_HEAD = re.compile(r"(?:.*\.)?(lm_head\..*)")  # beside the prefix of the decoder's other tensors
# Tensors in or beside a part that the model does not use.
_UNUSED = {
    "llm": re.compile(r".*rotary_emb\.inv_freq"),
    "vision_tower": re.compile(r"text_model\..*|logit_\w+|(.*\.)?head\..*|.*\.position_ids"),
    "sound_tower": re.compile(r"language_model\..*|multi_modal_projector\..*|(model\.)?decoder\..*|proj_out\..*"),
}


def read_layout(folder: Path, left_out: Iterable[str] = ()) -> dict[str, StoredTensor]:
    """Returns a checkpoint's tensors (either layout) by merged name; unpublished ones start with `omnivinci_jax.`.

    Parts in `left_out` may be missing: an export leaves out what was never trained.

    Raises:
        UserError: no checkpoint, or a damaged one (`stored_tensors`).
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    _check_format(folder)
    if is_checkpoint(folder):
        found = {_canonical_name(name): tensor for name, tensor in stored_tensors(folder).items()}
    else:
        missing = [part for part in PARTS if not is_checkpoint(folder / part)]
        if len(missing) == len(PARTS):
            raise UserError(
                f"{folder}: neither model.safetensors (merged layout) nor folders {', '.join(PARTS)} (released layout)"
            )
        if needed := [part for part in missing if part not in left_out]:
            _check_format(folder / needed[0])
            raise UserError(f"{folder / needed[0]}: no model.safetensors; this part is missing")
        found = {}
        for part in (part for part in PARTS if part not in missing):
            tensors, others = read_part(folder / part, part)
            unknown = [name for name in others if not _UNUSED[part].fullmatch(name)]
            if unknown:
                raise UserError(f"{folder / part}: this model has no tensor {unknown[0]}")
            found |= tensors
    if is_checkpoint(folder / UNPUBLISHED):
        found |= {f"{UNPUBLISHED}.{name}": tensor for name, tensor in stored_tensors(folder / UNPUBLISHED).items()}
    return found


def read_part(folder: Path, part: str) -> tuple[dict[str, StoredTensor], list[str]]:
    """Returns a part's tensors by merged name, and the names of tensors that the model does not use.

    The checkpoint may be the part alone or a larger model, of any version of transformers.

    Raises:
        UserError: no checkpoint, a damaged one (`stored_tensors`), or one without this part.
    """
    _check_format(folder)
    if not is_checkpoint(folder):
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}")
    stored = stored_tensors(folder)
    merged = PARTS[part][0]
    if part not in _LANDMARKS:
        return {merged + name.removeprefix(f"{part}."): tensor for name, tensor in stored.items()}, []
    inner, landmark = _LANDMARKS[part]
    prefixes = [name.removesuffix(landmark) for name in stored if f".{name}".endswith(f".{landmark}")]
    if len(prefixes) != 1:
        raise UserError(f"{folder}: {len(prefixes)} tensors are named …{landmark}: one is needed to find the {part}")
    found, unused = {}, []
    for name, tensor in stored.items():
        if part == "llm" and (head := _HEAD.fullmatch(name)):
            found[merged + head[1]] = tensor
        elif name.startswith(prefixes[0]) and not _UNUSED[part].fullmatch(name.removeprefix(prefixes[0])):
            found[merged + inner + name.removeprefix(prefixes[0])] = tensor
        else:
            unused.append(name)
    return found, unused


def _check_format(folder: Path) -> None:
    """Refuses a checkpoint in PyTorch's own format, which is code that would be run."""
    pickled = sorted(file.name for file in folder.glob("pytorch_model*.bin*"))
    if pickled and not is_checkpoint(folder):
        raise UserError(
            f"{folder / pickled[0]}: .bin files are pickled code and are not read; in transformers, load the "
            f"checkpoint{_model_type(folder)} and call save_pretrained, which writes {SINGLE}"
        )


def _model_type(folder: Path) -> str:
    try:
        return f" (model_type {json.loads((folder / 'config.json').read_text())['model_type']!r})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def drop_tied_head(found: dict[str, Any]) -> None:
    """Removes the head from the tensors of a decoder with tied embeddings, whose file may have it once more.

    Raises:
        UserError: the head differs from the embedding.
    """
    head, table = (found.get(f"llm.{name}.weight") for name in ("lm_head", "model.embed_tokens"))
    if head is None or table is None:
        return
    if not np.array_equal(head.read(), table.read()):
        raise UserError(
            f"{head.file}: lm_head.weight differs from embed_tokens.weight, but tie_word_embeddings is True in "
            f"config.json{_model_type(head.file.parent)}; set it to False to keep both"
        )
    del found["llm.lm_head.weight"]


def file_name(name: str, layout: Layout) -> tuple[str, str]:
    """Returns folder ("" for the root) and name in `layout` of a tensor whose merged name is `name`."""
    if name.startswith(f"{UNPUBLISHED}."):
        return UNPUBLISHED, name.removeprefix(f"{UNPUBLISHED}.")
    if layout == "merged":
        return "", name
    part = name.split(".", 1)[0]
    merged, released = PARTS[part]
    return part, released + name.removeprefix(merged)


def _canonical_name(name: str) -> str:
    """Returns the merged name of a tensor that some published files prefix with the inner module's name."""
    part = name.split(".", 1)[0]
    if part == "sound_tower":
        return PARTS[part][0] + _strip(name.removeprefix("sound_tower."), ("audio_tower.",))
    if part == "vision_tower":
        return PARTS[part][0] + _strip(name, (PARTS[part][0] + "vision_model.", PARTS[part][0]))
    return name


def _strip(name: str, prefixes: tuple[str, ...]) -> str:
    prefix = next((prefix for prefix in prefixes if prefix and name.startswith(prefix)), "")
    return name.removeprefix(prefix)
