"""Flags that several commands have, and the types of their values. Imports nothing heavy."""

import argparse
from collections.abc import Callable
from pathlib import Path

from etils import epath

from omnivinci_jax.errors import UserError
from omnivinci_jax.paths import expanded, is_remote


def add_command(
    commands, name: str, run: Callable[[argparse.Namespace], int] | None, text: str, *, keeps_unparsed: bool = False
) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
        run: takes the arguments and returns the exit code; None for a command with actions of its own.
        text: help.
        keeps_unparsed: arguments that no flag takes, such as --config.key=value, go to `run` as `unparsed`, instead of
            being refused.
    """
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(run=run, keeps_unparsed=keeps_unparsed)
    return command


def path(text: str) -> epath.Path:
    """Type of a flag: a path, on a disk or in a bucket."""
    try:
        return expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def local_file(text: str) -> Path:
    """Type of a flag: a path on a disk."""
    name = path(text)
    if is_remote(name):
        raise argparse.ArgumentTypeError(f"{text}: is in a bucket: download the file and give its path")
    return Path(name)


def positive(text: str) -> int:
    """Type of a flag: a positive integer."""
    if not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def add_model_flag(command: argparse.ArgumentParser) -> None:
    """Adds --model, required."""
    command.add_argument("--model", type=path, required=True, help="model directory")


def add_dtype_flag(command: argparse.ArgumentParser, default: str | None = "float32") -> None:
    """Adds --dtype."""
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=default, help="type of activations; default: float32"
    )


def add_max_skipped_flag(command: argparse.ArgumentParser, default: float) -> None:
    """Adds --max_skipped."""
    command.add_argument(
        "--max_skipped",
        type=float,
        default=default,
        metavar="SHARE",
        help=f"stop if more than this share of the data file cannot be read; default: {default:g}",
    )


def add_mesh_flag(command: argparse.ArgumentParser, default: str = "one device") -> None:
    """Adds --mesh; `commands.mesh.flag_mesh` makes it."""
    command.add_argument(
        "--mesh", metavar="AXIS=N,...", help=f"device mesh, for example data=1,tensor=4; default: {default}"
    )


def add_voice_flags(command: argparse.ArgumentParser) -> None:
    """Adds --voice, --speech_server and --speech_model."""
    command.add_argument("--voice", default="", help="voice of the speech (espeak-ng's, or the server's)")
    command.add_argument(
        "--speech_server", default="", metavar="URL", help="server with OpenAI's /v1/audio/speech; default: espeak-ng"
    )
    command.add_argument("--speech_model", default="tts-1", help="speech model of that server")
