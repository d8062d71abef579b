"""Errors that a user can cause: the command line prints them as one line and exits with code 2."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
# Longer lines are cut in the middle: their start says where, their end what.
_LONGEST_LINE, _KEPT_START, _KEPT_END = 1000, 600, 300


class UserError(ValueError):
    """One line that says what is wrong, where, and how to fix it."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class MediaError(UserError):
    """A media file that cannot be read as its declared kind; the message starts with its path."""


class DataError(UserError):
    """A conversation or a data file that cannot be used; the message starts with `file:line`."""


class ConfigError(UserError):
    """A configuration value that is unknown or not supported; the message names the key."""


class Preempted(Exception):
    """The run was interrupted from outside; the same command resumes it from its last checkpoint."""


def check_values(settings: object, rules: Iterable[tuple[str, bool, str]], prefix: str = "") -> None:
    """Raises ConfigError for the first field that is invalid; a rule is its name, whether it is valid, what is."""
    for name, valid, allowed in rules:
        if not valid:
            raise ConfigError(f"{prefix}{name} is {getattr(settings, name)}: it must be {allowed}")


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turns an import that fails in this block into a UserError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'omnivinci-jax[{extra}]'") from None


def printable(text: str) -> str:
    """Returns a text that every terminal and file takes.

    Escapes lone surrogates (bytes of a path that are not UTF-8) and control characters, and cuts long lines.
    """
    text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    text = text.encode(errors="backslashreplace").decode()
    return "\n".join(
        line if len(line) <= _LONGEST_LINE else f"{line[:_KEPT_START]} ... {line[-_KEPT_END:]}"
        for line in text.split("\n")
    )


def describe_at(where: str, error: Exception) -> str:
    """Describes in one line what a sample raised; `where` is its file and line."""
    text, where = describe(error), printable(where)
    return text if text.startswith(where) else f"{where}: {text}"


def describe(error: Exception) -> str:
    """Describes an error in one line; names the type of one that is not made for users."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return printable(" ".join(text.split()))
