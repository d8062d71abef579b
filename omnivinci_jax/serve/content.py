"""Turns the messages of a request into a conversation: texts are text, and media come from where the server allows."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from omnivinci_jax.errors import MediaError, UserError, printable
from omnivinci_jax.sequence.chat import Conversation, Inline, Kind, Media, Message, valid_text
from omnivinci_jax.sequence.references import media_file
from omnivinci_jax.serve.fetch import download
from omnivinci_jax.serve.schema import (
    AudioPart,
    ChatMessage,
    ImagePart,
    InputAudioPart,
    MediaSettings,
    TextPart,
    VideoPart,
)

_KINDS: dict[str, Kind] = {"image_url": "image", "audio_url": "sound", "video_url": "video"}


@dataclass(frozen=True)
class Sources:
    """Where media may come from, beside the request itself.

    media_dir: folder of file:// URLs; None: they are refused.
    allow_urls: whether http(s):// URLs are downloaded.
    max_bytes: of one media file.
    """

    media_dir: Path | None = None
    allow_urls: bool = False
    max_bytes: int = 256 * 2**20


async def read_conversation(messages: list[ChatMessage], settings: MediaSettings, sources: Sources) -> Conversation:
    """Returns the conversation of a request, with its media at hand; raises UserError."""
    turns = []
    for message in messages:
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        content = []
        for part in parts:
            if isinstance(part, TextPart):
                content.append(valid_text(part.text))
                continue
            if message.role != "user":
                raise UserError(f"a message of the {message.role} has media: only the user's messages may")
            media = await asyncio.to_thread(_media, part, sources)
            content.append(replace(media, muted=media.kind == "video" and not settings.use_audio_in_video))
        role = "system" if message.role == "developer" else message.role
        turns.append(Message(role, tuple(item for item in content if item)))
    if any(turn.role == "system" for turn in turns[1:]):
        raise UserError("a system message must be the first message")
    if turns[-1].role != "user":
        raise UserError("the last message must be the user's")
    return Conversation(tuple(turns), "messages")


def uploaded(kind: Kind, name: str, content: bytes) -> Media:
    """Returns an uploaded file as a media item; raises MediaError if it is empty."""
    if not content:
        raise MediaError(f"{name}: is empty (0 bytes)")
    return Media(kind, printable(name), Inline(_suffix(name), content))


def _media(part: ImagePart | AudioPart | VideoPart | InputAudioPart, sources: Sources) -> Media:
    if isinstance(part, InputAudioPart):
        sound = part.input_audio
        return media_file("sound", f"data:audio/{sound.format};base64,{sound.data}", "input_audio", Path())
    name, kind = part.type, _KINDS[part.type]
    url = getattr(part, name).url
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        return media_file(kind, url, name, Path())
    if scheme == "file":
        return Media(kind, str(_allowed_file(url, sources)))
    if scheme in ("http", "https"):
        if not sources.allow_urls:
            raise UserError(f"{name}: this server does not download URLs (--allow_urls); send the file as a data: URL")
        return uploaded(kind, url, download(url, sources.max_bytes))
    raise UserError(f"{name}: give a data: URL, or file:// or http(s):// where the server allows them")


def _allowed_file(url: str, sources: Sources) -> Path:
    where = printable(url)[:200]
    if sources.media_dir is None:
        raise UserError(f"{where}: this server reads no files of its own (--media_dir); send a data: URL")
    try:
        path = Path(unquote(url[7:].removeprefix("localhost"))).resolve()
        if path.is_relative_to(sources.media_dir.resolve()) and path.is_file():
            return path
    except (OSError, ValueError):
        pass
    raise UserError(f"{where}: there is no such file in the server's --media_dir")


def _suffix(name: str) -> str:
    suffix = Path(urlsplit(name).path if "://" in name else name).suffix
    return suffix if suffix[1:].isalnum() and len(suffix) <= 8 else ""
