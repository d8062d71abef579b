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
from omnivinci_jax.generate.command import load_for_command, sampling_of, say, speed, system_message
from omnivinci_jax.media.kinds import media_kind
from omnivinci_jax.sequence.chat import Conversation, Media, Message, checked_text

_WORD = re.compile(r"""'[^']+'|"[^"]+"|(?:\\.|\S)+""")
HELP = "Ask; drop files into the line to show them. /new begins anew, Ctrl-C ends an answer, Ctrl-D the chat."


def run(arguments: Namespace, mesh: Mesh | None) -> int:
    """The command."""
    with contextlib.suppress(ImportError):  # a Python without it has a plainer prompt
        import readline  # noqa: F401 (gives `input` editing and history)
    sampling, beginning = vars(sampling_of(arguments)), system_message(arguments)
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
    """Answers a line; returns the conversation with both, or as it was where the line cannot be answered."""
    try:
        asked = (*messages, Message("user", read_line(line)))
        answer = say(model, Conversation(asked), sampling)
    except KeyboardInterrupt:  # while media were being read
        print()
        return messages
    except UserError as error:
        print(error, file=sys.stderr)
        return messages
    print(speed(answer), file=sys.stderr)
    return (*asked, Message("assistant", (answer.text,))) if answer.text else messages


def read_line(line: str) -> tuple[str | Media, ...]:
    """What was typed, with the files that are named in it as media before the text.

    A word is a file where it is a path to one that is there (terminals quote or escape the spaces of a dropped path)
    and has a folder or a dot in it, so that a word of the text that happens to name a file stays text.
    """
    media = []

    def taken_out(word: re.Match) -> str:
        path = _path(word[0])
        if not (("/" in path or "." in path) and os.path.isfile(path)):
            return word[0]
        media.append(Media(media_kind(path), path))
        return ""

    text = " ".join(_WORD.sub(taken_out, line).split())
    return (*media, *((checked_text(text, "your line"),) if text else ()))


def _path(word: str) -> str:
    """The path that a word may be, without what a terminal puts around it."""
    word = word[1:-1] if word[0] in "'\"" else re.sub(r"\\(.)", r"\1", word)
    if word.startswith("file://"):
        word = unquote(word.removeprefix("file://"))
    return os.path.expanduser(word)
