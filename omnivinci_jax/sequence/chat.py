"""Conversations: read from JSON, checked, and rendered as ChatML text with the spans that are trained.

Two forms are read: the Hugging Face chat form (`messages` with content items) and the LLaVA form (`conversations`,
`from`/`value`, `<image>`, `<video>`, `<sound>`). Both become one `Conversation`.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from omnivinci_jax.errors import DataError
from omnivinci_jax.paths import AnyPath

Kind = Literal["image", "video", "sound"]
Role = Literal["system", "user", "assistant"]

DEFAULT_SYSTEM = "You are a helpful assistant"  # the published template's, without a full stop
PLACEHOLDERS: dict[Kind, str] = {"image": "<image>", "video": "<vila/video>", "sound": "<sound>"}
_LLAVA_PLACEHOLDERS: dict[Kind, str] = {"image": "<image>", "video": "<video>", "sound": "<sound>"}
_ITEM_KINDS: dict[str, Kind] = {"image": "image", "video": "video", "audio": "sound", "sound": "sound"}
_LLAVA_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip
_RESERVED = re.compile(r"<image>|<video>|<vila/video>|<sound>|<\|[a-z_]+\|>")


class ShardRef(NamedTuple):
    """A record of a shard that holds a media file."""

    shard: str
    number: int


@dataclass(frozen=True)
class Media:
    """A media file in a conversation; `kind` says how it enters the model.

    path: the file, or where it would be in the folder of shards that it is stored in.
    """

    kind: Kind
    path: str
    stored: ShardRef | None = None


@dataclass(frozen=True)
class Message:
    """One turn: texts and media in their order."""

    role: Role
    content: tuple[str | Media, ...]


@dataclass(frozen=True)
class Conversation:
    """A checked conversation; `where` (file:line) starts every error about it."""

    messages: tuple[Message, ...]
    where: str = "prompt"

    @property
    def media(self) -> tuple[Media, ...]:
        """All media in the order in which their placeholders stand in the text."""
        return tuple(item for message in self.messages for item in message.content if isinstance(item, Media))

    @property
    def unanswered(self) -> "Conversation":
        """The conversation without its last message, where that is an answer; raises DataError if none is left."""
        last = len(self.messages) - (self.messages[-1].role == "assistant")
        if not last:
            raise DataError(f"{self.where}: nothing is asked: the only message is the assistant's")
        return replace(self, messages=self.messages[:last])


def parse_conversation(record: object, where: str, folder: AnyPath) -> Conversation:
    """Reads one JSON object in either form; media paths are relative to `folder`.

    Raises:
        DataError: what is wrong with it, starting with `where`.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: a conversation is a JSON object, not {type(record).__name__}")
    if "messages" in record:
        messages = _from_messages(record["messages"], where, folder)
    elif "conversations" in record:
        messages = _from_llava(record, where, folder)
    else:
        raise DataError(f"{where}: neither 'messages' (chat form) nor 'conversations' (LLaVA form) is there")
    if not messages:
        raise DataError(f"{where}: the conversation has no messages")
    return Conversation(messages, where)


def render(conversation: Conversation, *, generate: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """ChatML text of a conversation and the character spans that are trained.

    A system message is put first where there is none. Trained is what the assistant says and its `<|im_end|>`.
    With `generate`, the text ends where the assistant's next turn begins.
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
        raise DataError(f"{where}: 'messages' is a list of messages, not {type(messages).__name__}")
    return tuple(_message(message, where, folder) for message in messages)


def _message(message: object, where: str, folder: AnyPath) -> Message:
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise DataError(f"{where}: each message needs a 'role' of system, user or assistant: {str(message)[:80]}")
    content = message.get("content")
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(items, list):
        raise DataError(f"{where}: the 'content' of a {message['role']} message is a text or a list of items")
    return Message(message["role"], tuple(_item(item, where, folder) for item in items))


def _item(item: object, where: str, folder: AnyPath) -> str | Media:
    fields: dict[str, Any] = item if isinstance(item, dict) else {}
    kind = fields.get("type")
    if kind == "text" and isinstance(fields.get("text"), str):
        return checked_text(fields["text"], where)
    if kind in _ITEM_KINDS:
        path = fields.get(kind, fields.get("path"))
        if isinstance(path, str) and path:
            return Media(_ITEM_KINDS[kind], str(folder / path))
        raise DataError(f'{where}: an item of type "{kind}" needs its file as "{kind}": "PATH"')
    raise DataError(f"{where}: an item is of type text, image, video or audio: {str(item)[:80]}")


def _from_llava(record: dict, where: str, folder: AnyPath) -> tuple[Message, ...]:
    paths: dict[Kind, list[str]] = {kind: [] for kind in PLACEHOLDERS}
    for key, kind in _ITEM_KINDS.items():
        listed = record.get(key) or []
        listed = [listed] if isinstance(listed, str) else listed
        if not isinstance(listed, list) or not all(isinstance(path, str) for path in listed):
            raise DataError(f"{where}: '{key}' is a path or a list of paths: {str(listed)[:80]}")
        paths[kind] += listed
    turns = record["conversations"]
    if not isinstance(turns, list) or any(
        not isinstance(t, dict) or t.get("from") not in _LLAVA_ROLES or not isinstance(t.get("value"), str)
        for t in turns
    ):
        raise DataError(f"{where}: 'conversations' is a list of {{'from': human|gpt|system, 'value': text}}")
    for kind, placeholder in _LLAVA_PLACEHOLDERS.items():
        count = sum(turn["value"].count(placeholder) for turn in turns)
        if count != len(paths[kind]):
            raise DataError(
                f"{where}: {count} {placeholder} in the text but {len(paths[kind])} {kind} path(s); give one path for "
                "each placeholder, in their order"
            )
    kinds: dict[str, Kind] = {placeholder: kind for kind, placeholder in _LLAVA_PLACEHOLDERS.items()}
    waiting = {kind: iter(kind_paths) for kind, kind_paths in paths.items()}
    messages = []
    for turn in turns:
        content = []
        for piece in re.split(r"(<image>|<video>|<sound>)\n?", turn["value"]):
            if piece in kinds:
                content.append(Media(kinds[piece], str(folder / next(waiting[kinds[piece]]))))
            elif piece:
                content.append(checked_text(piece, where))
        messages.append(Message(_LLAVA_ROLES[turn["from"]], tuple(content)))
    return tuple(messages)


def checked_text(text: str, where: str) -> str:
    """The text; raises DataError where it contains a media placeholder or another special token."""
    found = _RESERVED.search(text)
    if found:
        raise DataError(
            f"{where}: the text contains {found.group()}, which is reserved; media are items of their own "
            '({"type": "video", "video": "PATH"})'
        )
    return text
