"""Shared by the commands: the progress bar and one-line errors."""

import logging
import sys
from collections.abc import Callable

from tqdm import tqdm

from omnivinci_jax.errors import UserError


def progress(total: int, what: str) -> tqdm:
    """A progress bar over bytes; silent where standard error is not a terminal."""
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None)


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command: a UserError is one line and exit code 2."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
