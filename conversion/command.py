"""What the commands share: the progress bar and one-line errors."""

import logging
import sys
from collections.abc import Callable

from tqdm import tqdm

from omnivinci_jax.errors import UserError


def progress(total: int, description: str) -> tqdm:
    """Returns a progress bar over bytes; hidden if standard error is not a terminal."""
    return tqdm(total=total, desc=description, unit="B", unit_scale=True, disable=None)


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command; prints a UserError as one line and exits with code 2."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
