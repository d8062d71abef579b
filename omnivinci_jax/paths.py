"""Paths on a disk or in a bucket (gs://, extra `gcs`), where `epath.Path` does not cover the difference.

A bucket writes objects atomically, but a folder is only a name prefix: renaming it copies every object, so no code may
rely on an atomic rename.
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
    """Returns whether `path` is in a bucket."""
    return "://" in os.fspath(path)


def expanded(path: epath.PathLike) -> epath.Path:
    """Returns a path that a user gave, with its ~ expanded; raises UserError for a URL that is no bucket."""
    try:
        return epath.Path(path).expanduser()
    except KeyError:  # a scheme that epath does not know
        raise UserError(f"{os.fspath(path)}: URLs are not read: download the file and give its path") from None


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns an absolute path. A bucket path already is one; `Path.absolute` would prepend the current folder.

    Raises:
        UserError: see `expanded`.
    """
    path = expanded(path)
    return path if is_remote(path) else path.absolute()


@contextmanager
def as_user_error(target: epath.PathLike) -> Iterator[None]:
    """Turns an OSError from writing `target` into a one-line UserError."""
    try:
        yield
    except OSError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise UserError(f"{target}: cannot be written ({reason}); free some space there and start again") from None


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
    """Deletes partial files that killed processes left in `folder` in `atomic_file`."""
    for leftover in epath.Path(folder).glob(".*.part"):
        leftover.unlink()


def local_copy(path: epath.PathLike) -> Path:
    """Returns the file itself if it is local, or else a cached copy among the temporary files."""
    if not is_remote(path):
        return Path(path)
    path = epath.Path(path)
    stat = path.stat()
    digest = hashlib.sha256(repr((str(path), stat.length, stat.mtime)).encode()).hexdigest()[:32]
    copy = Path(tempfile.gettempdir()) / "omnivinci" / f"{digest}-{path.name}"
    if not copy.exists():
        copy.parent.mkdir(exist_ok=True)
        content = path.read_bytes()
        with atomic_file(copy) as part:
            part.write_bytes(content)
    return copy


class LocalMirror:
    """A folder for files that grow, which objects in a bucket cannot.

    `local` is the folder itself if it is on a disk. For a bucket it is a temporary local folder that starts with the
    files that match `patterns`; `sync` uploads changed files.
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
                self._uploaded[copy] = _version(copy)

    def sync(self) -> None:
        """Uploads changed files; returns when they are in the bucket."""
        if self._remote is None:
            return
        for file in sorted(self.local.rglob("*")):
            version = _version(file)
            if file.is_file() and self._uploaded.get(file) != version:
                (self._remote / file.relative_to(self.local)).write_bytes(file.read_bytes())
                self._uploaded[file] = version


def _version(file: Path) -> tuple[int, int]:
    return file.stat().st_mtime_ns, file.stat().st_size
