"""How a conversation or a command names a media file: a path, a file:// URL, or a data: URI that holds the file."""

import base64
import mimetypes
import os
import re
from urllib.parse import unquote, unquote_to_bytes

from omnivinci_jax.errors import DataError
from omnivinci_jax.paths import AnyPath
from omnivinci_jax.sequence.chat import Inline, Kind, Media

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LONGEST_PATH = 4095  # bytes; no system call takes more
# The Python versions that are supported lack some of these.
_SUFFIXES = {
    "audio/wav": ".wav",
    "audio/wave": ".wav",
    "audio/flac": ".flac",
    "audio/ogg": ".ogg",
    "image/webp": ".webp",
}


def media_file(kind: Kind, reference: str, where: str, folder: AnyPath) -> Media:
    """Returns the media item that a text refers to; paths are relative to `folder`.

    Raises:
        DataError: the text is a URL, a broken data: URI, or no path; the message starts with `where`.
    """
    if reference[:5].lower() == "data:":
        return _inline(kind, reference, where)
    if reference[:7].lower() == "file://":
        reference = unquote(reference[7:].removeprefix("localhost"))
    elif _URL.match(reference):
        raise DataError(f"{where}: {shown(reference)}: URLs are not read: download the file and give its path")
    try:
        size = len(os.fsencode(reference))
    except UnicodeEncodeError:
        raise DataError(f"{where}: {shown(reference)}: not a path: it has half of a surrogate pair") from None
    if "\0" in reference or not 0 < size <= _LONGEST_PATH:
        raise DataError(f"{where}: {shown(reference)}: not a path")
    return Media(kind, str(folder / reference))


def shown(value: object) -> str:
    """Returns a value on one line, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _inline(kind: Kind, uri: str, where: str) -> Media:
    header, comma, payload = uri[5:].partition(",")
    mime, *parameters = header.lower().split(";")
    try:
        content = unquote_to_bytes(payload)
        if "base64" in parameters:
            content = base64.b64decode(b"".join(content.split()), validate=True)
    except ValueError as error:  # base64 has characters of its own
        raise DataError(f"{where}: {shown(uri)}: a data: URI whose base64 is broken ({error})") from None
    if not (comma and content):
        raise DataError(f"{where}: {shown(uri)}: a data: URI without data")
    suffix = _SUFFIXES.get(mime) or mimetypes.guess_extension(mime) or ""
    inline = Inline(suffix, content)
    return Media(kind, f"data:{mime};sha256={inline.sha256.hex()[:16]}", inline)
