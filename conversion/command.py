"""What the three commands share: a directory that appears when it is whole, the progress bar, one-line errors."""

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from omnivinci_jax.errors import UserError


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """A directory under a temporary name, moved to `destination` when all went well and removed when not."""
    destination = destination.absolute()
    if destination.exists():
        raise UserError(f"{destination}: it exists already; nothing was written over")
    part = destination.with_name(f".{destination.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed run left
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(destination)
    except OSError as error:
        raise UserError(f"{error.filename or destination}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def progress(total: int, what: str) -> tqdm:
    """A progress bar over bytes; silent where standard error is not a terminal."""
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a command: a UserError is one line and exit code 2."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
