"""Conversations: parsed from JSON, checked, and rendered as ChatML text with the spans that are trained.

Reads two forms: Hugging Face chat (`messages` with content items) and LLaVA (`conversations`, `from`/`value`,
`<image>`, `<video>`, `<sound>`). Both become a `Conversation`.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from omnivinci_jax.errors import DataError
from omnivinci_jax.paths import AnyPath

Kind = Literal["image", "video", "sound"]
Role = Literal["system", "user", "assistant"]

DEFAULT_SYSTEM = "You are a helpful assistant"  # as in the published template, without a full stop
PLACEHOLDERS: dict[Kind, str] = {"image": "<image>", "video": "<vila/video>", "sound": "<sound>"}
_LLAVA_PLACEHOLDERS: dict[Kind, str] = {"image": "<image>", "video": "<video>", "sound": "<sound>"}
_ITEM_KINDS: dict[str, Kind] = {"image": "image", "video": "video", "audio": "sound", "sound": "sound"}
_LLAVA_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip
_RESERVED = re.compile(r"<image>|<video>|<vila/video>|<sound>|<\|[a-z_]+\|>")


class ShardRef(NamedTuple):
    """The record of a data shard that holds a media file."""

    shard: str
    record: int


@dataclass(frozen=True)
class Media:
    """A media file in a conversation; `kind` says how it enters the model.

    path: the file; for media in a shard, the original relative path below the folder of shards.
    track: its sound track, counted from 1; None: the file's default one.
    """

    kind: Kind
    path: str
    stored: ShardRef | None = None
    track: int | None = None


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


def parse_conversation(record: object, where: str, folder: AnyPath) -> Conversation:
    """Parses a JSON object in either form; media paths are relative to `folder`.

    Raises:
        DataError: the object is not a valid conversation; the message starts with `where`.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: a conversation must be a JSON object, not {type(record).__name__}")
    if "messages" in record:
        messages = _from_messages(record["messages"], where, folder)
    elif "conversations" in record:
        messages = _from_llava(record, where, folder)
    else:
        raise DataError(f"{where}: has neither 'messages' (chat form) nor 'conversations' (LLaVA form)")
    if not messages:
        raise DataError(f"{where}: the conversation has no messages")
    return Conversation(messages, where)


def render(conversation: Conversation, *, generate: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """Renders a conversation as ChatML, with the character spans that are trained: each answer and its `<|im_end|>`.

    Adds the default system message if there is none. With `generate`, the text ends where the assistant's next turn
    begins.
    """
    messages = conversation.messages
    if messages[0].role != "system":
        messages = (Message("system", (DEFAULT_SYSTEM,)), *messages)
    text, spans = "", []
    for message in messages:
        text += f"<|im_start|>{message.role}\n"
        start = len(text)
        text += "".join(PLACEHOLDERS[item.kind] if isinstance(item, Media) else item for item in message.content)
        text += "<|im_end|>"
        if message.role == "assistant":
            spans.append((start, len(text)))
        text += "\n"
    if generate:
        text += "<|im_start|>assistant\n"
    return text, spans


def _from_messages(messages: object, where: str, folder: AnyPath) -> tuple[Message, ...]:
    if not isinstance(messages, list):
        raise DataError(f"{where}: 'messages' must be a list of messages, not {type(messages).__name__}")
    return tuple(_message(message, where, folder) for message in messages)


def _message(message: object, where: str, folder: AnyPath) -> Message:
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise DataError(f"{where}: each message needs a 'role' of system, user or assistant: {str(message)[:80]}")
    content = message.get("content")
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(items, list):
        raise DataError(f"{where}: the 'content' of a {message['role']} message must be a text or a list of items")
    return Message(message["role"], tuple(_item(item, where, folder) for item in items))


def _item(item: object, where: str, folder: AnyPath) -> str | Media:
    fields: dict[str, Any] = item if isinstance(item, dict) else {}
    kind = fields.get("type")
    if kind == "text" and isinstance(fields.get("text"), str):
        return checked_text(fields["text"], where)
    if kind in _ITEM_KINDS:
        path = fields.get(kind, fields.get("path"))
        if isinstance(path, str) and path:
            return Media(_ITEM_KINDS[kind], str(folder / path), track=_track(fields, where))
        raise DataError(f'{where}: an item of type "{kind}" needs its file as "{kind}": "PATH"')
    raise DataError(f"{where}: the type of an item must be text, image, video or audio: {str(item)[:80]}")


def _track(item: dict[str, Any], where: str) -> int | None:
    """Returns the sound track that an item names; raises DataError if it is not one."""
    track = item.get("track")
    if track is not None and (type(track) is not int or track < 1 or item.get("type") == "image"):
        raise DataError(f'{where}: "track" is a sound track of a video or audio item, from 1: {str(track)[:80]}')
    return track


def _from_llava(record: dict, where: str, folder: AnyPath) -> tuple[Message, ...]:
    paths: dict[Kind, list[str]] = {kind: [] for kind in PLACEHOLDERS}
    for key, kind in _ITEM_KINDS.items():
        listed = record.get(key) or []
        listed = [listed] if isinstance(listed, str) else listed
        if not isinstance(listed, list) or not all(isinstance(path, str) for path in listed):
            raise DataError(f"{where}: '{key}' must be a path or a list of paths: {str(listed)[:80]}")
        paths[kind] += listed
    turns = record["conversations"]
    if not isinstance(turns, list) or any(
        not isinstance(t, dict) or t.get("from") not in _LLAVA_ROLES or not isinstance(t.get("value"), str)
        for t in turns
    ):
        raise DataError(f"{where}: 'conversations' must be a list of {{'from': human|gpt|system, 'value': text}}")
    for kind, placeholder in _LLAVA_PLACEHOLDERS.items():
        count = sum(turn["value"].count(placeholder) for turn in turns)
        if count != len(paths[kind]):
            raise DataError(
                f"{where}: {count} {placeholder} in the text but {len(paths[kind])} {kind} path(s); give one path for "
                "each placeholder, in order"
            )
    kinds: dict[str, Kind] = {placeholder: kind for kind, placeholder in _LLAVA_PLACEHOLDERS.items()}
    remaining = {kind: iter(kind_paths) for kind, kind_paths in paths.items()}
    messages = []
    for turn in turns:
        content = []
        for piece in re.split(r"(<image>|<video>|<sound>)\n?", turn["value"]):
            if piece in kinds:
                content.append(Media(kinds[piece], str(folder / next(remaining[kinds[piece]]))))
            elif piece:
                content.append(checked_text(piece, where))
        messages.append(Message(_LLAVA_ROLES[turn["from"]], tuple(content)))
    return tuple(messages)


def checked_text(text: str, where: str) -> str:
    """Returns the text; raises DataError if it contains a media placeholder or another special token."""
    found = _RESERVED.search(text)
    if found:
        raise DataError(
            f"{where}: the text contains {found.group()}, which is reserved; give media as separate items "
            '({"type": "video", "video": "PATH"})'
        )
    return text
