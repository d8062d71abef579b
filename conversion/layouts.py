"""The two published checkpoint layouts: files and tensor names.

The released layout has one folder per part, the merged layout one folder for all. The rest of the package uses the
merged names. Modules that only this project has (OmniAlignNet, learned time embeddings, the convolution before the
sound projector) go into a separate folder in both layouts, so loaders of the published parts never see them.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from conversion.tensor_files import StoredTensor, is_checkpoint, stored_tensors
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
# Other prefixes in published files of a part, longest first.
_ALIASES = {
    "llm": ("language_model.", "llm."),
    "vision_tower": ("vision_tower.vision_tower.vision_model.", "vision_tower.vision_model.", "vision_tower."),
    "sound_tower": ("model.audio_tower.", "sound_tower.", "audio_tower.", "model.encoder."),
    "mm_projector": ("mm_projector.",),
    "sound_mm_projector": ("sound_mm_projector.",),
}
# Tensors of larger checkpoints that contain a part; the model does not use them.
_UNUSED = {
    "llm": re.compile(r".*rotary_emb\.inv_freq"),
    "vision_tower": re.compile(r"text_model\..*|logit_\w+|(vision_model\.)?head\..*|.*\.position_ids"),
    "sound_tower": re.compile(r"language_model\..*|multi_modal_projector\..*|model\.decoder\..*|proj_out\..*"),
    "mm_projector": re.compile(r"(?!)"),
    "sound_mm_projector": re.compile(r"(?!)"),
}


def read_layout(folder: Path, left_out: Iterable[str] = ()) -> dict[str, StoredTensor]:
    """Returns a checkpoint's tensors (either layout) by merged name; unpublished ones start with `omnivinci_jax.`.

    Parts in `left_out` may be missing: an export leaves out what was never trained.

    Raises:
        UserError: no checkpoint, or a damaged one (`stored_tensors`).
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    if is_checkpoint(folder):
        found = {_canonical_name(name): tensor for name, tensor in stored_tensors(folder).items()}
    else:
        missing = [part for part in PARTS if not is_checkpoint(folder / part)]
        if len(missing) == len(PARTS):
            raise UserError(
                f"{folder}: neither model.safetensors (merged layout) nor folders {', '.join(PARTS)} (released layout)"
            )
        if needed := [part for part in missing if part not in left_out]:
            raise UserError(f"{folder / needed[0]}: no model.safetensors; this part is missing")
        found = {}
        for part in (part for part in PARTS if part not in missing):
            found |= read_part(folder / part, part)[0]
    if is_checkpoint(folder / UNPUBLISHED):
        found |= {f"{UNPUBLISHED}.{name}": tensor for name, tensor in stored_tensors(folder / UNPUBLISHED).items()}
    return found


def read_part(folder: Path, part: str) -> tuple[dict[str, StoredTensor], list[str]]:
    """Returns a part's tensors by merged name, and the names of tensors that the model does not use."""
    if not is_checkpoint(folder):
        raise UserError(f"{folder}: neither model.safetensors nor model.safetensors.index.json")
    merged, released = PARTS[part]
    found, unused = {}, []
    for name, tensor in stored_tensors(folder).items():
        if _UNUSED[part].fullmatch(name):
            unused.append(name)
            continue
        name = _strip(name, (*_ALIASES[part], released))
        found[merged + name] = tensor
    return found, unused


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
