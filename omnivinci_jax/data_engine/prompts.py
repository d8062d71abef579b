"""Prompts: text files with a version in their first line. A changed text repeats what depends on it."""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from omnivinci_jax.errors import UserError

# The names that each prompt uses, as $name.
_NAMES = {
    "vision_caption": "seconds",
    "audio_caption": "seconds",
    "correct": "captions clips",
    "questions": "caption count",
    "judge": "question evidence",
    "repair": "problem answer",
    "describe": "",
}
_VERSION = re.compile(r"version: *(\S+)")


@dataclass(frozen=True)
class Prompt:
    """A prompt; `version` is what its author calls it, `sha256` what it is."""

    name: str
    version: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text, without the version."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, **values: object) -> str:
        """Returns the text with each $name replaced by its value."""
        return Template(self.text).substitute(values)


def read_prompts(folder: str = "") -> dict[str, Prompt]:
    """Reads all prompts, from `folder` where it has the file, or else from the package.

    Raises:
        UserError: no such folder, a file without a version, or a $name that is unknown or missing.
    """
    if folder and not Path(folder).is_dir():
        raise UserError(f"config.prompts is {folder}: there is no such folder")
    package = resources.files("omnivinci_jax.data_engine") / "prompts"
    prompts = {}
    for name in _NAMES:
        file = Path(folder) / f"{name}.txt"
        source = file if folder and file.is_file() else package / f"{name}.txt"
        prompts[name] = _read(name, source.read_text(encoding="utf-8"), str(source))
    return prompts


def _read(name: str, content: str, where: str) -> Prompt:
    first, _, text = content.partition("\n")
    version = _VERSION.fullmatch(first.strip())
    if not version or not text.strip():
        raise UserError(f"{where}: the first line must be its version, such as 'version: 1', and the prompt follows")
    template = Template(text.strip())
    if not template.is_valid():
        raise UserError(f"{where}: a $ that begins no name; write $$ for a dollar")
    needed, used = set(_NAMES[name].split()), set(template.get_identifiers())
    if wrong := sorted(needed ^ used):
        known = ", ".join(f"${one}" for one in sorted(needed)) or "no $name"
        raise UserError(f"{where}: ${wrong[0]} is unknown or missing; this prompt has {known}")
    return Prompt(name, version[1], text.strip())
