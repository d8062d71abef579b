"""Paths of a disk or a bucket: `epath.Path` is both, and what here is beside it is what the two do not share.

Buckets (gs://) need the extra `gcs`. An object there is whole or not there, but a folder is only a prefix of names:
renaming one copies every object, so nothing may depend on that being one event.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etils import epath

from omnivinci_jax.errors import UserError

AnyPath = Path | epath.Path


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """A path from the root on; one in a bucket always is, and `Path.absolute` would put this folder before it."""
    path = epath.Path(path).expanduser()
    return path if is_remote(path) else path.absolute()


@contextmanager
def as_user_error(target: epath.PathLike) -> Iterator[None]:
    """Turns an OSError that writing `target` raises into a UserError of one line."""
    try:
        yield
    except OSError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise UserError(f"{target}: it could not be written ({reason}); make room there and start again") from None


@contextmanager
def atomic_file(target: epath.PathLike) -> Iterator[Path]:
    """Yields a local file to write; it becomes `target` when the block ends, and is deleted if the block raises.

    Raises:
        UserError: `target` cannot be written.
    """
    target = epath.Path(target)
    if is_remote(target):
        with tempfile.TemporaryDirectory() as folder, as_user_error(target):
            part = Path(folder) / target.name
            yield part
            target.write_bytes(part.read_bytes())
        return
    part = Path(target).with_name(f".{target.name}.{os.uname().nodename}-{os.getpid()}.part")
    try:
        with as_user_error(target):
            yield part
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def remove_unfinished(folder: epath.PathLike) -> None:
    """Deletes the files that killed processes left in `folder` while they wrote them with `atomic_file`."""
    for leftover in epath.Path(folder).glob(".*.part"):
        leftover.unlink()


def local_copy(path: epath.PathLike) -> Path:
    """A file as one of this machine: itself, or a copy among the temporary files, made for the first who asks."""
    if not is_remote(path):
        return Path(path)
    path = epath.Path(path)
    state = path.stat()
    digest = hashlib.sha256(repr((str(path), state.length, state.mtime)).encode()).hexdigest()[:32]
    copy = Path(tempfile.gettempdir()) / "omnivinci" / f"{digest}-{path.name}"
    if not copy.exists():
        copy.parent.mkdir(exist_ok=True)
        content = path.read_bytes()
        with atomic_file(copy) as part:
            part.write_bytes(content)
    return copy


class Mirrored:
    """A folder for files that grow or are written piece by piece, which objects in a bucket cannot be.

    On a disk `local` is the folder itself. In a bucket it is one of this machine, begun with the files that match
    `patterns`, and `sync` uploads what has changed.
    """

    def __init__(self, folder: epath.Path, patterns: tuple[str, ...] = ()):
        self._remote = folder if is_remote(folder) else None
        self._uploaded = {}
        if self._remote is None:
            self.local = Path(folder)
            return
        self._temporary = tempfile.TemporaryDirectory()
        self.local = Path(self._temporary.name) / folder.name
        self.local.mkdir()
        for pattern in patterns:
            for file in folder.glob(pattern):
                copy = self.local / file.name
                copy.write_bytes(file.read_bytes())
                self._uploaded[copy] = _state(copy)

    def sync(self) -> None:
        """Returns when everything is in the bucket."""
        if self._remote is None:
            return
        for file in sorted(self.local.rglob("*")):
            state = _state(file)
            if file.is_file() and self._uploaded.get(file) != state:
                (self._remote / file.relative_to(self.local)).write_bytes(file.read_bytes())
                self._uploaded[file] = state


def _state(file: Path) -> tuple[int, int]:
    return file.stat().st_mtime_ns, file.stat().st_size
