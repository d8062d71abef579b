"""The tokenizer of a model directory: `tokenizer.json` in Qwen2's format with the media tokens."""

import hashlib
from functools import cached_property, lru_cache

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Bool, Int32

from omnivinci_jax.errors import UserError
from omnivinci_jax.sequence.chat import ACCEPT, INTEGRATE, PLACEHOLDERS, TURN_END, TURN_START, Conversation, render

# Files of a model directory that belong to the tokenizer, the chat template or generation.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


class Tokenizer:
    """Converts text to ids and back. Reads only `tokenizer.json`, so loader workers need no transformers.

    Text never becomes a special token: only `encode_conversation` adds turns and placeholders, as ids, and the control
    token at the start of an answer, if the vocabulary has it.
    """

    def __init__(self, folder: epath.PathLike):
        """Raises UserError if `folder` has no valid tokenizer.json, or one without the required tokens."""
        self.path = epath.Path(folder) / "tokenizer.json"
        if not self.path.is_file():
            raise UserError(f"{self.path}: there is no tokenizer; copy the model's tokenizer files there")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(self.path.read_text())
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{self.path}: not a tokenizer file: {error}") from None
        self._controls = [token for token in (ACCEPT, INTEGRATE) if self.token_id(token) is not None]
        specials = (TURN_START, TURN_END, *PLACEHOLDERS.values(), *self._controls)
        self._special_ids = {token: self._special(token) for token in specials}
        self._tokenizer.add_special_tokens(list(specials))  # marks them as special, whatever the file says
        self._tokenizer.encode_special_tokens = True  # as text; the name means the characters, not the token
        self.eos_id = self._special_ids[TURN_END]
        self.media_ids = {kind: self._special_ids[token] for kind, token in PLACEHOLDERS.items()}
        (self.newline_id,) = self.encode("\n")

    def __reduce__(self):
        return _cached_tokenizer, (self.path.parent,)

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def token_id(self, token: str) -> int | None:
        """Returns the id of a token of the vocabulary, special or not."""
        return self._tokenizer.token_to_id(token)

    def copy_files(self, folder: epath.PathLike) -> None:
        """Copies those of FILES that stand beside the tokenizer into a folder."""
        for file in (self.path.with_name(name) for name in FILES):
            if file.exists():
                (epath.Path(folder) / file.name).write_bytes(file.read_bytes())

    def encode(self, text: str) -> list[int]:
        """Encodes a text; special tokens in it are ordinary characters."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Decodes ids to text, without special tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def encode_conversation(
        self, conversation: Conversation, *, generate: bool = False
    ) -> tuple[Int32[np.ndarray, " L"], Bool[np.ndarray, " L"]]:
        """Encodes a conversation, with one placeholder id per media item; also returns which ids are trained."""
        text, special, spans = render(conversation, generate=generate, controls=self._controls)
        ids, offsets, position = [], [], 0
        for start, end in [*special, (len(text), len(text))]:
            part = self._tokenizer.encode(text[position:start], add_special_tokens=False)
            ids += part.ids
            offsets += [(first + position, last + position) for first, last in part.offsets]
            if end > start:
                ids.append(self._special_ids[text[start:end]])
                offsets.append((start, end))
            position = end
        starts, ends = np.array(offsets).T
        trained = np.zeros(len(starts), bool)
        for start, end in spans:
            trained |= (starts >= start) & (ends <= end)
        return np.array(ids, np.int32), trained

    def _special(self, token: str) -> int:
        token_id = self.token_id(token)
        if token_id is None:
            raise UserError(f"{self.path}: the tokenizer has no {token}; add the media tokens of the published model")
        return token_id


@lru_cache(maxsize=2)
def _cached_tokenizer(folder: epath.Path) -> Tokenizer:
    """Unpickles a tokenizer: process pools send it with every work item, and it is slow to read."""
    return Tokenizer(folder)
