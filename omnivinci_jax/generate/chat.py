"""`omnivinci chat`: a conversation in the terminal."""

import contextlib
import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path

from omnivinci_jax.errors import UserError
from omnivinci_jax.generate.assistant import Assistant
from omnivinci_jax.generate.command import load_for_command, sampling_of, say, speed, system_message
from omnivinci_jax.media.kinds import media_kind
from omnivinci_jax.sequence.chat import Conversation, Media, Message, checked_text

HELP = "Ask; drop files into the line to show them. /new begins anew, Ctrl-C ends an answer, Ctrl-D the chat."


def run(arguments: Namespace) -> int:
    """The command."""
    with contextlib.suppress(ImportError):  # a Python without it has a plainer prompt
        import readline  # noqa: F401 (gives `input` editing and history)
    sampling, beginning = vars(sampling_of(arguments)), system_message(arguments)
    model, messages = load_for_command(arguments), beginning
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
    try:
        words = shlex.split(line)
    except ValueError:  # an apostrophe is no quotation mark
        words = line.split()
    paths = [word for word in words if _is_dropped(word)]
    if not paths:
        return (checked_text(line, "your line"),)
    text = " ".join(word for word in words if word not in paths)
    media = tuple(Media(media_kind(path), path) for path in map(_path, paths))
    return (*media, *((checked_text(text, "your line"),) if text else ()))


def _is_dropped(word: str) -> bool:
    return ("/" in word or "." in word) and os.path.isfile(_path(word))


def _path(word: str) -> str:
    return str(Path(word.removeprefix("file://")).expanduser())
