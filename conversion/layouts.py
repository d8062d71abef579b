"""The two published layouts: which files a checkpoint is in, and how its tensors are called there.

Released: a folder a part. Merged: one folder for all. Names in the rest of the package are the merged ones. What only
this project has (OmniAlignNet, learned time embeddings, the convolution before the sound projector) is in a folder of
its own in both, so that nobody who loads the published parts meets it.
"""

import re
from pathlib import Path
from typing import Literal

from conversion.tensor_files import StoredTensor, is_checkpoint, stored_tensors
from omnivinci_jax.errors import UserError

Layout = Literal["released", "merged"]
OURS = "omnivinci_jax"
# Part, its prefix in the merged layout and its prefix in its folder of the released one.
PARTS = {
    "llm": ("llm.", ""),
    "vision_tower": ("vision_tower.vision_tower.", "vision_model."),
    "sound_tower": ("sound_tower.", ""),
    "mm_projector": ("mm_projector.", ""),
    "sound_mm_projector": ("sound_mm_projector.", ""),
}
# Other prefixes that published files of a part have, longest first.
_ALIASES = {
    "llm": ("language_model.", "llm."),
    "vision_tower": ("vision_tower.vision_tower.vision_model.", "vision_tower.vision_model.", "vision_tower."),
    "sound_tower": ("model.audio_tower.", "sound_tower.", "audio_tower.", "model.encoder."),
    "mm_projector": ("mm_projector.",),
    "sound_mm_projector": ("sound_mm_projector.",),
}
# Tensors of larger checkpoints that a part is taken from, which the model has no use for.
_LEFT_OUT = {
    "llm": re.compile(r".*rotary_emb\.inv_freq"),
    "vision_tower": re.compile(r"text_model\..*|logit_\w+|(vision_model\.)?head\..*|.*\.position_ids"),
    "sound_tower": re.compile(r"language_model\..*|multi_modal_projector\..*|model\.decoder\..*|proj_out\..*"),
    "mm_projector": re.compile(r"(?!)"),
    "sound_mm_projector": re.compile(r"(?!)"),
}


def read_layout(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint in either layout, under their merged names; our own ones under `omnivinci_jax.`.

    Raises:
        UserError: no checkpoint there, or a damaged one (`stored_tensors`).
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    if is_checkpoint(folder):
        found = {_merged_alias(name): tensor for name, tensor in stored_tensors(folder).items()}
    else:
        missing = [part for part in PARTS if not is_checkpoint(folder / part)]
        if len(missing) == len(PARTS):
            raise UserError(
                f"{folder}: neither model.safetensors (merged layout) nor folders {', '.join(PARTS)} (released layout)"
            )
        if missing:
            raise UserError(f"{folder / missing[0]}: there is no model.safetensors; the part is missing")
        found = {}
        for part in PARTS:
            found |= read_part(folder / part, part)[0]
    if is_checkpoint(folder / OURS):
        found |= {f"{OURS}.{name}": tensor for name, tensor in stored_tensors(folder / OURS).items()}
    return found


def read_part(folder: Path, part: str) -> tuple[dict[str, StoredTensor], list[str]]:
    """Tensors of one part under their merged names, and the names of those that the model has no use for."""
    if not is_checkpoint(folder):
        raise UserError(f"{folder}: there is no model.safetensors and no model.safetensors.index.json")
    merged, released = PARTS[part]
    found, left_out = {}, []
    for name, tensor in stored_tensors(folder).items():
        if _LEFT_OUT[part].fullmatch(name):
            left_out.append(name)
            continue
        name = _strip(name, (*_ALIASES[part], released))
        found[merged + name] = tensor
    return found, left_out


def file_name(name: str, layout: Layout) -> tuple[str, str]:
    """Folder ("" is the root) and name there of a tensor called `name` in the merged layout."""
    if name.startswith(f"{OURS}."):
        return OURS, name.removeprefix(f"{OURS}.")
    if layout == "merged":
        return "", name
    part = name.split(".", 1)[0]
    merged, released = PARTS[part]
    return part, released + name.removeprefix(merged)


def _merged_alias(name: str) -> str:
    """Merged names as some published files have them, with the inner module's name."""
    part = name.split(".", 1)[0]
    if part == "sound_tower":
        return PARTS[part][0] + _strip(name.removeprefix("sound_tower."), ("audio_tower.",))
    if part == "vision_tower":
        return PARTS[part][0] + _strip(name, (PARTS[part][0] + "vision_model.", PARTS[part][0]))
    return name


def _strip(name: str, prefixes: tuple[str, ...]) -> str:
    prefix = next((prefix for prefix in prefixes if prefix and name.startswith(prefix)), "")
    return name.removeprefix(prefix)
