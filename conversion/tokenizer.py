"""Finds a checkpoint's tokenizer, adds the media tokens, and writes its files."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import tokenizers
from transformers import PreTrainedTokenizerFast

from omnivinci_jax.errors import UserError
from omnivinci_jax.sequence.chat import PLACEHOLDERS
from omnivinci_jax.sequence.tokenizer import FILES


class SourceTokenizer(NamedTuple):
    """A tokenizer with the media tokens.

    size: number of ids. added: new tokens with their ids.
    source: the folder of its files, or the tokenizer of a GGUF file.
    """

    source: Path | PreTrainedTokenizerFast
    tokenizer: tokenizers.Tokenizer
    size: int
    added: list[tuple[str, int]]

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, and copies or writes the other tokenizer files."""
        if isinstance(self.source, Path):
            for name in FILES:
                if (self.source / name).is_file():
                    shutil.copy(self.source / name, folder / name)
        else:
            self.source.save_pretrained(folder)
        if self.added or not (folder / "tokenizer.json").is_file():
            self.tokenizer.save(str(folder / "tokenizer.json"))


def read_tokenizer(given: Path | None, folders: Iterable[Path | None]) -> SourceTokenizer | None:
    """Reads the tokenizer in `given`, else in the first of `folders` that has one; None if none has.

    Raises:
        UserError: `given` has no tokenizer, or it cannot be read.
    """
    candidates = [given] if given else [folder for folder in folders if folder]
    folder = next((f for f in candidates if (f / "tokenizer.json").is_file() or (f / "vocab.json").is_file()), None)
    if folder is None:
        if given:
            raise UserError(f"{given}: neither tokenizer.json nor vocab.json")
        return None
    return with_media_tokens(_load(folder), folder)


def with_media_tokens(tokenizer: tokenizers.Tokenizer, source: Path | PreTrainedTokenizerFast) -> SourceTokenizer:
    """Adds those media tokens that the tokenizer does not have."""
    new = [token for token in PLACEHOLDERS.values() if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in new])
    ids = tokenizer.get_vocab(with_added_tokens=True)
    return SourceTokenizer(source, tokenizer, max(ids.values()) + 1, [(token, ids[token]) for token in new])


def _load(folder: Path) -> tokenizers.Tokenizer:
    try:
        if (folder / "tokenizer.json").is_file():
            return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        from transformers import Qwen2TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

        return Qwen2TokenizerFast.from_pretrained(folder).backend_tokenizer
    except Exception as error:  # the libraries raise bare Exception
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: cannot read the tokenizer: {reason}") from None
