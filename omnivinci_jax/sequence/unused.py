"""Finds input that a record names but no form reads, so that a misspelt key is an error and not a blind model."""

import re
from typing import Any

from omnivinci_jax.errors import DataError

_MEDIA = r"(?:image|img|picture|pic|photo|video|clip|movie|frame|audio|wav|media)s?"
_FILE = r"(?:path|file|filename|file_name|url|uri|list)s?"
_MEDIA_NAME = re.compile(rf"{_MEDIA}|{_MEDIA}_?{_FILE}", re.IGNORECASE)
_FILE_NAME = re.compile(
    rf"(?:.*_)?(?:{_MEDIA}|{_FILE})(?:_.*)?|.*(?:image|video|audio|sound|speech|voice).*", re.IGNORECASE
)
_IDENTITY = re.compile(r"(?:.*_)?(?:id|ids|source|caption|description|title)", re.IGNORECASE)
_MEDIA_FILE = re.compile(
    r"data:.*|.*\.(?:png|jpe?g|webp|gif|bmp|tiff?|hei[cf]|avif|exr|mp4|m4v|mov|mkv|webm|avi|flv|wmv|ts|mpe?g|3gp"
    r"|wav|mp3|flac|ogg|oga|opus|m4a|aac|wma)",
    re.IGNORECASE | re.DOTALL,
)
_TURNS = re.compile(
    r"messages|conversations?|turns?|dialog(?:ue)?s?|chats?|history|query|response|completion|chosen|rejected"
    r"|rejected_(?:response|messages|images)|tools|tool_calls|functions?|function_call|objects",
    re.IGNORECASE,
)


def check_unused(fields: dict[str, Any], used: set[str], where: str) -> None:
    """Raises DataError if a key that is not in `used` looks like media or turns; other keys are harmless."""
    for key, value in fields.items():
        if key in used or not isinstance(value, str | list | dict) or not value or value in ("[]", "{}"):
            continue
        if _TURNS.fullmatch(key):
            raise DataError(
                f"{where}: {key!r} looks like a part of the conversation, but is not read beside the others; move it "
                "into 'messages', or remove it"
            )
        if _looks_like_media(key, value):
            raise DataError(
                f"{where}: {key!r} looks like media, but is not read; name it 'images', 'videos' or 'audios' beside "
                "'messages', or remove it"
            )


def _looks_like_media(key: str, value: Any) -> bool:
    if _IDENTITY.fullmatch(key):
        return False
    texts = _texts(value)
    if _MEDIA_NAME.fullmatch(key) and (texts or isinstance(value, dict)):
        return True
    return bool(_FILE_NAME.fullmatch(key)) and any(_MEDIA_FILE.fullmatch(text) for text in texts)


def _texts(value: Any) -> list[str]:
    """Returns the texts in a value, a list or an object."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inside if isinstance(item, str | list | dict) for text in _texts(item)]
