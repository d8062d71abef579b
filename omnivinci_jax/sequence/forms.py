"""Reads the published forms of conversations and turns each into a `Conversation`.

- Hugging Face chat, our own form: `messages`; a message is a text or a list of items, which name their files.
- LLaMA-Factory and ms-swift: `messages` or `conversations` with `<image>`, `<video>` and `<audio>` in the texts, and
  lists of files (`images`, `videos`, `audios`); `system` beside them.
- LLaVA and ShareGPT: `conversations` with `from` and `value`; `image`, `video` and `sound` may be one file.
- Alpaca (`instruction`, `input`, `output`) and ms-swift's `query` and `response`, both with `history`; ms-swift's
  `conversation` of `human` and `assistant`.
- Video-R1 and AVQA-R1 (EchoInk): `problem` with `options`, `solution`, and `path` of one file or of one per kind.

In every form, `"use_audio_in_video": false` beside the conversation reads its videos without their sound.
Placeholders exist only in the user's turns of forms with lists; everywhere else the same characters are text.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from omnivinci_jax.errors import DataError
from omnivinci_jax.paths import AnyPath
from omnivinci_jax.sequence.chat import Conversation, Kind, Media, Message, Role, valid_text
from omnivinci_jax.sequence.references import media_file, shown
from omnivinci_jax.sequence.unused import check_unused

_LISTS: dict[str, Kind] = {
    "image": "image", "images": "image", "video": "video", "videos": "video",
    "audio": "sound", "audios": "sound", "sound": "sound", "sounds": "sound",
}  # fmt: skip
_ITEM_KINDS: dict[str, Kind] = {"image": "image", "video": "video", "audio": "sound", "sound": "sound"}
_KINDS: tuple[Kind, ...] = ("image", "video", "sound")
_PLACEHOLDER = re.compile(r"<(image|video|audio|sound)>")
_PLACEHOLDER_LINE = re.compile(r"<(image|video|audio|sound)>\n?")
_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip


class _Slot(NamedTuple):
    """The position of the next listed file of a kind; `text` is what marks it."""

    kind: Kind
    text: str


@dataclass
class _Turn:
    role: Role
    content: list[str | Media | _Slot]


def parse_conversation(record: object, where: str, folder: AnyPath) -> Conversation:
    """Parses a JSON object in any of the forms; media paths are relative to `folder`.

    Raises:
        DataError: the object is not a valid conversation; the message starts with `where`.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: a conversation must be a JSON object, not {type(record).__name__}")
    return _Parser(record, where, folder).parse()


class _Parser:
    """Parses one record."""

    def __init__(self, record: dict[str, Any], where: str, folder: AnyPath):
        self._record, self._where, self._folder = record, where, folder
        self._used = {*_LISTS, "system"}
        self._files: dict[Kind, list[Media]] = {kind: [] for kind in _KINDS}
        self._has_lists = any(record.get(key) is not None for key in _LISTS)
        self._placeholder = _PLACEHOLDER
        if "messages" not in record and "conversations" in record:
            # LLaVA's texts have placeholders even if the lists are missing, and a line break ends each.
            self._has_lists, self._placeholder = True, _PLACEHOLDER_LINE

    def parse(self) -> Conversation:
        for key, kind in _LISTS.items():
            self._files[kind] += self._listed(key, kind)
        turns = self._turns()
        if not turns:
            raise self._error("the conversation has no messages")
        check_unused(self._record, self._used, self._where)
        self._fill(turns)
        if not self._has_sound():
            for turn in turns:
                turn.content = [
                    replace(item, muted=item.kind == "video") if isinstance(item, Media) else item
                    for item in turn.content
                ]
        messages = (
            Message(turn.role, tuple(item for item in turn.content if item and not isinstance(item, _Slot)))
            for turn in turns
        )
        return Conversation((*self._system(turns), *messages), self._where)

    def _error(self, text: str) -> DataError:
        return DataError(f"{self._where}: {text}")

    def _has_sound(self) -> bool:
        """Returns whether videos are read with their sound."""
        given = self._record.get("use_audio_in_video", True)
        if not isinstance(given, bool):
            raise self._error(f"'use_audio_in_video' must be true or false: {shown(given)}")
        return given

    def _turns(self) -> list[_Turn]:
        record = self._record
        if "messages" in record:
            return [self._message(message) for message in self._list("messages")]
        if "conversations" in record:
            return [self._llava_turn(turn) for turn in self._list("conversations")]
        if "conversation" in record:
            return [
                turn
                for pair in self._list("conversation")
                for turn in self._pair((pair.get("human"), pair.get("assistant")) if isinstance(pair, dict) else pair)
            ]
        if "problem" in record:
            return self._problem()
        for asked, answered in (("query", "response"), ("instruction", "output")):
            if asked in record:
                self._used |= {asked, answered, "history"}
                question = record[asked]
                if asked == "instruction" and (more := record.get("input")):
                    question = f"{question}\n{more}" if isinstance(question, str) and isinstance(more, str) else more
                history = record.get("history") or []
                if not isinstance(history, list):
                    raise self._error(f"'history' must be a list of [question, answer]: {shown(history)}")
                pairs = [*history, (question, record.get(answered))]
                return [turn for pair in pairs for turn in self._pair(pair)]
        raise self._error("has neither 'messages' (chat form) nor 'conversations' (LLaVA form)")

    def _problem(self) -> list[_Turn]:
        """Returns a question with its options, a line each, and its solution."""
        record = self._record
        self._used |= {"problem", "options", "solution", "path", "data_type", "problem_type"}
        options, path = record.get("options") or [], record.get("path") or {}
        texts: list[Any] = [record["problem"], *options] if isinstance(options, list) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise self._error("'problem' must be a text, and 'options' a list of texts")
        files = path if isinstance(path, dict) else {record.get("data_type"): path}
        media: list[str | Media | _Slot] = []
        for name, file in files.items():
            kind = _ITEM_KINDS.get(name) if isinstance(name, str) else None
            if kind is None or not isinstance(file, str):
                raise self._error(
                    "'path' must be a file, with 'data_type' image, video or audio, or one file for each of these: "
                    + shown(path)
                )
            media.append(media_file(kind, file, self._where, self._folder))
        turns = [_Turn("user", [*media, valid_text("\n".join(texts))])]
        if isinstance(solution := record.get("solution"), str):
            turns.append(_Turn("assistant", [valid_text(solution)]))
        return turns

    def _list(self, key: str) -> list:
        self._used.add(key)
        turns = self._record[key]
        if not isinstance(turns, list):
            raise self._error(f"{key!r} must be a list of messages, not {type(turns).__name__}")
        return turns

    def _message(self, message: Any) -> _Turn:
        role = _role_of(message)
        if role is None:
            raise self._error(f"each message needs a 'role' of system, user or assistant: {shown(message)}")
        content = message.get("content", message.get("value"))
        if isinstance(content, str):
            content = self._text(content, role)
        elif isinstance(content, list):
            content = [self._item(item) for item in content]
        else:
            raise self._error(f"the 'content' of a {role} message must be a text or a list of items")
        check_unused(message, {"role", "from", "content", "value"}, self._where)
        for key in ("loss", "weight"):
            if role == "assistant" and message.get(key) in (False, 0) and message.get(key) is not None:
                raise self._error(f"{key!r} of a message is {message[key]}: all answers are trained; remove the key")
        return _Turn(role, content)

    def _llava_turn(self, turn: Any) -> _Turn:
        if not _role_of(turn) or not isinstance(turn.get("value", turn.get("content")), str):
            raise self._error(
                "'conversations' must be a list of {'from': human|gpt|system, 'value': text}: " + shown(turn)
            )
        return self._message(turn)

    def _pair(self, pair: Any) -> list[_Turn]:
        """Returns a question and its answer, if it has one."""
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise self._error(f"a question and its answer must be two texts: {shown(pair)}")
        question, answer = pair
        turns = [_Turn("user", self._text(question, "user"))]
        if answer is not None:
            if not isinstance(answer, str):
                raise self._error(f"an answer must be a text: {shown(answer)}")
            turns.append(_Turn("assistant", self._text(answer, "assistant")))
        return turns

    def _text(self, text: str, role: Role) -> list[str | Media | _Slot]:
        text = valid_text(text)
        if role != "user" or not self._has_lists:
            return [text]
        content, position = [], 0
        for found in self._placeholder.finditer(text):
            content += [text[position : found.start()], _Slot(_ITEM_KINDS[found[1]], f"<{found[1]}>")]
            position = found.end()
        return [*content, text[position:]]

    def _item(self, item: Any) -> str | Media | _Slot:
        fields: dict[str, Any] = item if isinstance(item, dict) else {}
        name = fields["type"] if isinstance(fields.get("type"), str) else ""
        if name == "text" and isinstance(fields.get("text"), str):
            check_unused(fields, {"type", "text"}, self._where)
            return valid_text(fields["text"])
        kind = _ITEM_KINDS.get(name.removesuffix("_url"))
        if kind is None:
            raise self._error(f"the type of an item must be text, image, video or audio: {shown(item)}")
        keys = (name, name.removesuffix("_url"), "path", "url")
        check_unused(fields, {"type", "track", *keys}, self._where)
        given = {_path_of(fields[key]) for key in keys if fields.get(key)}
        track = self._track(fields, kind)
        if not given and self._files[kind] and track is None:
            return _Slot(kind, f'{{"type": "{name}"}}')
        if len(given) == 1 and (path := given.pop()):
            return replace(media_file(kind, path, self._where, self._folder), track=track)
        raise self._error(f'an item of type "{name}" needs its file as "{name}": "PATH"')

    def _track(self, item: dict[str, Any], kind: Kind) -> int | None:
        """Returns the sound track that an item names."""
        track = item.get("track")
        if track is not None and (type(track) is not int or track < 1 or kind == "image"):
            raise self._error(f'"track" is a sound track of a video or audio, from 1: {shown(track)}')
        return track

    def _listed(self, key: str, kind: Kind) -> list[Media]:
        listed = self._record.get(key) or []
        files = []
        for entry in listed if isinstance(listed, list) else [listed]:
            path, track = _path_of(entry), None
            if path is None:
                raise self._error(f"{key!r} must be a path or a list of paths: {shown(self._record[key])}")
            if isinstance(entry, dict):
                check_unused(entry, {"path", "url", "track"}, self._where)
                track = self._track(entry, kind)
            files.append(replace(media_file(kind, path, self._where, self._folder), track=track))
        return files

    def _fill(self, turns: list[_Turn]) -> None:
        """Puts the listed files into the slots of their kind, in order, or first where there are none."""
        first: list[str | Media | _Slot] = []
        for kind in _KINDS:
            files = iter(self._files[kind])
            items = [item for turn in turns for item in turn.content]
            slots = [item for item in items if isinstance(item, _Slot) and item.kind == kind]
            if not slots and any(isinstance(item, Media) and item.kind == kind for item in items):
                if self._files[kind]:
                    raise self._error(f"{kind}s are given both in a list and as items with a path; give each once")
            elif not slots:
                first += files
            elif len(slots) != len(self._files[kind]):
                names = " and ".join(sorted({slot.text for slot in slots}))
                raise self._error(
                    f"{len(slots)} {names} in the text but {len(self._files[kind])} {kind} path(s); give one path for "
                    "each placeholder, in order"
                )
            for turn in turns:
                turn.content = [
                    next(files) if isinstance(item, _Slot) and item.kind == kind else item for item in turn.content
                ]
        if first:
            user = next((turn for turn in turns if turn.role == "user"), None)
            if user is None:
                raise self._error("lists files, but no user message can show them")
            user.content = [*first, *user.content]

    def _system(self, turns: list[_Turn]) -> tuple[Message, ...]:
        system = self._record.get("system") or ""
        if not isinstance(system, str):
            raise self._error(f"'system' must be a text: {shown(system)}")
        if system and turns[0].role == "system":
            raise self._error("has 'system' and a system message; give one of them")
        return (Message("system", (valid_text(system),)),) if system else ()


def _role_of(turn: Any) -> Role | None:
    role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return _ROLES.get(role) if isinstance(role, str) else None


def _path_of(value: Any) -> str | None:
    """Returns the path in a text, or in an object such as {"url": PATH}."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("path", "url") if value.get(key)), None)
    return value if isinstance(value, str) and value else None
