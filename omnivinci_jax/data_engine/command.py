"""`omnivinci data-engine`: its flags. Imports nothing heavy, since the command line imports it."""

import argparse
from pathlib import Path

from omnivinci_jax.errors import needs_extra
from omnivinci_jax.flags import add_command


def add_commands(commands) -> None:
    """Adds the command; settings are --config FILE and --config.key=value."""
    text = "make omni-modal conversations of a folder of videos"
    command = add_command(commands, "data-engine", _run, text, keeps_unparsed=True)
    command.add_argument("--videos", type=Path, required=True, help="folder of videos, searched with its subfolders")
    command.add_argument("--out", type=Path, required=True, help="folder of results; the same command resumes")
    command.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="convert these questions about the videos (LLaVA-Video, ShareGPT, ...) instead, and report on their sound",
    )
    command.add_argument("--dry_run", action="store_true", help="read the videos and tell what asking the models costs")


def _run(arguments: argparse.Namespace) -> int:
    """Runs the engine, or converts questions; returns 1 if some rows failed for now, as when a server is away."""
    with needs_extra("data-engine"):
        from omnivinci_jax.data_engine.run import run
    return run(arguments)
