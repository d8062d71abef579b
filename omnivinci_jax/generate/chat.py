"""`omnivinci chat`: a conversation in the terminal."""

import contextlib
import os
import re
import sys
from argparse import Namespace
from urllib.parse import unquote

from jax.sharding import Mesh

from omnivinci_jax.errors import UserError
from omnivinci_jax.generate.assistant import Assistant
from omnivinci_jax.generate.command import (
    describe_speed,
    load_for_command,
    parse_sampling,
    stream_answer,
    system_message,
)
from omnivinci_jax.media.kinds import media_kind
from omnivinci_jax.sequence.chat import Conversation, Media, Message, valid_text

_WORD = re.compile(r"""'[^']+'|"[^"]+"|(?:\\.|\S)+""")
HELP = "Type a question; drop files into it to show them. /new starts over, Ctrl-C stops an answer, Ctrl-D the chat."


def run(arguments: Namespace, mesh: Mesh | None) -> int:
    """Runs the command."""
    with contextlib.suppress(ImportError):  # not in every Python; without it, the prompt has no history
        import readline  # noqa: F401 (gives `input` editing and history)
    sampling, beginning = vars(parse_sampling(arguments)), system_message(arguments)
    model, messages = load_for_command(arguments, mesh), beginning
    print(HELP, file=sys.stderr)
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return 0
        if line == "/new":
            messages = beginning
        elif line:
            messages = turn(model, messages, line, sampling)


def turn(model: Assistant, messages: tuple[Message, ...], line: str, sampling: dict) -> tuple[Message, ...]:
    """Answers a line; returns the conversation with line and answer, or unchanged if there is no answer."""
    try:
        asked = (*messages, Message("user", read_line(line)))
        answer = stream_answer(model, Conversation(asked), sampling)
    except KeyboardInterrupt:  # while reading media
        print()
        return messages
    except UserError as error:
        print(error, file=sys.stderr)
        return messages
    print(describe_speed(answer), file=sys.stderr)
    return (*asked, Message("assistant", (answer.text,))) if answer.text else messages


def read_line(line: str) -> tuple[str | Media, ...]:
    """Parses a typed line; returns the files it names as media, then the text.

    A word is a file if it is the path of an existing file (terminals quote or escape spaces in a dropped path) and
    contains a slash or a dot, so that an ordinary word that happens to name a file stays text.
    """
    media = []

    def extract(word: re.Match) -> str:
        path = _path(word[0])
        if not (("/" in path or "." in path) and os.path.isfile(path)):
            return word[0]
        media.append(Media(media_kind(path), path))
        return ""

    text = " ".join(_WORD.sub(extract, line).split())
    return (*media, *((valid_text(text),) if text else ()))


def _path(word: str) -> str:
    """Converts a word to a path, without the quotes and escapes that terminals add."""
    word = word[1:-1] if word[0] in "'\"" else re.sub(r"\\(.)", r"\1", word)
    if word.startswith("file://"):
        word = unquote(word.removeprefix("file://"))
    return os.path.expanduser(word)
