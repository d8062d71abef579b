"""Conversations, and how they are rendered as ChatML. `forms.py` reads them from JSON."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

from omnivinci_jax.errors import DataError

Kind = Literal["image", "video", "sound"]
Role = Literal["system", "user", "assistant"]

DEFAULT_SYSTEM = "You are a helpful assistant"  # as in the published template, without a full stop
TRANSCRIBE = "Transcribe the Speech."  # the paper's prompt
PLACEHOLDERS: dict[Kind, str] = {"image": "<image>", "video": "<vila/video>", "sound": "<sound>"}
# How a model answers that corrects a transcript with references (Appendix D.3.1).
ACCEPT, INTEGRATE = "<accept_internal>", "<integrate_reference>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"


class ShardRef(NamedTuple):
    """The record of a data shard that holds a media file."""

    shard: str
    record: int


@dataclass(frozen=True)
class Inline:
    """A media file inside the conversation itself, as a data: URI."""

    suffix: str
    content: bytes

    @cached_property
    def sha256(self) -> bytes:
        """The digest of the content, computed once."""
        return hashlib.sha256(self.content).digest()


@dataclass(frozen=True)
class Media:
    """A media file in a conversation; `kind` says how it enters the model.

    path: the file; for media in a shard, the original relative path below the folder of shards; for inline media, a
        name that is unique to the content.
    track: its sound track, counted from 1; None: the file's default one.
    muted: a video is read without its sound.
    """

    kind: Kind
    path: str
    stored: ShardRef | Inline | None = None
    track: int | None = None
    muted: bool = False


@dataclass(frozen=True)
class Message:
    """One turn: texts and media, in order."""

    role: Role
    content: tuple[str | Media, ...]


@dataclass(frozen=True)
class Conversation:
    """A checked conversation; `where` (file:line) starts every error about it."""

    messages: tuple[Message, ...]
    where: str = "prompt"

    @property
    def media(self) -> tuple[Media, ...]:
        """All media, in the order of their placeholders in the text."""
        return tuple(item for message in self.messages for item in message.content if isinstance(item, Media))

    @property
    def unanswered(self) -> "Conversation":
        """The conversation without its final answer, if it ends with one; raises DataError if no message is left."""
        count = len(self.messages) - (self.messages[-1].role == "assistant")
        if not count:
            raise DataError(f"{self.where}: there is no prompt: the only message is the assistant's")
        return replace(self, messages=self.messages[:count])

    def with_line(self, text: str) -> "Conversation":
        """The conversation with one more line (unless it is empty) at the end of its last message.

        Raises DataError if that is not the user's.
        """
        *earlier, last = self.messages
        if last.role != "user":
            raise DataError(f"{self.where}: a prompt must end with a message of the user")
        added = (f"\n{valid_text(text)}",) if text else ()
        return replace(self, messages=(*earlier, Message("user", (*last.content, *added))))


class Rendered(NamedTuple):
    """A conversation as ChatML.

    special: spans of the characters that are special tokens: turns, placeholders and control tokens. The same
        characters elsewhere are text that somebody wrote.
    trained: spans that are trained: each answer and its `<|im_end|>`.
    """

    text: str
    special: list[tuple[int, int]]
    trained: list[tuple[int, int]]


def render(conversation: Conversation, *, generate: bool = False, controls: Sequence[str] = ()) -> Rendered:
    """Renders a conversation, with the default system message if it has none.

    With `generate`, the text ends where the assistant's next turn begins. An answer that begins with one of `controls`
    begins with that token.
    """
    messages = conversation.messages
    if messages[0].role != "system":
        messages = (Message("system", (DEFAULT_SYSTEM,)), *messages)
    text, special, trained = "", [], []

    def add(piece: str, is_special: bool = False) -> None:
        nonlocal text
        if is_special:
            special.append((len(text), len(text) + len(piece)))
        text += piece

    for message in messages:
        add(TURN_START, True)
        add(f"{message.role}\n")
        start = len(text)
        content = message.content
        if message.role == "assistant" and content and isinstance(first := content[0], str):
            for control in controls:
                if first.startswith(control):
                    add(control, True)
                    content = (first.removeprefix(control), *content[1:])
        for item in content:
            add(PLACEHOLDERS[item.kind] if isinstance(item, Media) else item, isinstance(item, Media))
        add(TURN_END, True)
        if message.role == "assistant":
            trained.append((start, len(text)))
        add("\n")
    if generate:
        add(TURN_START, True)
        add("assistant\n")
    return Rendered(text, special, trained)


def valid_text(text: str) -> str:
    """Returns the text with lone surrogates, which no tokenizer and no file takes, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
