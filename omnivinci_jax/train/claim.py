"""Claims a work directory, so that only one run at a time uses it."""

import fcntl
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etils import epath

from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.paths import is_remote

log = logging.getLogger("omnivinci")

# How often a run renews its lock in a bucket, and how long another run waits to see a renewal.
HEARTBEAT_SECONDS = 10.0
WATCH_SECONDS = 3 * HEARTBEAT_SECONDS


@contextmanager
def claim_workdir(workdir: epath.Path) -> Iterator["Claim"]:
    """Claims a work directory until the block ends.

    Raises:
        ConfigError: another run uses the directory.
    """
    lock = workdir / "lock"
    with _lease(lock) if is_remote(lock) else _lock_file(Path(lock)) as claim:
        yield claim


class Claim:
    """A claimed work directory. On a disk, the claim cannot be lost."""

    def check(self) -> None:
        """Raises UserError if another run has taken over the directory, so that nothing is written to it."""


@contextmanager
def _lock_file(lock: Path) -> Iterator[Claim]:
    """Claims with a file lock, which the operating system releases however the process ends."""
    with open(lock, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise _in_use(lock, file.read().strip()) from None
        file.truncate(0)
        file.write(_owner() + "\n")
        file.flush()
        yield Claim()


class _Lease(Claim):
    """A lock object that its owner keeps rewriting, because buckets have no locks.

    A run that finds a lock watches it. If the lock changes, its owner is alive; otherwise the owner was killed, and the
    new run takes over. An owner that only lost its connection for that long notices the takeover before it saves.
    """

    def __init__(self, lock: epath.Path):
        self._lock, self._token, self._beats = lock, uuid.uuid4().hex, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def take(self) -> None:
        """Claims the directory; raises ConfigError if a live run uses it."""
        if self._lock.exists():
            before, deadline = self._lock.read_text(), time.monotonic() + WATCH_SECONDS
            while time.monotonic() < deadline and self._lock.exists():
                if self._lock.read_text() != before:
                    raise _in_use(self._lock, before.splitlines()[0])
                time.sleep(HEARTBEAT_SECONDS / 4)
        self._write()
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        if self._is_mine():
            self._lock.unlink(missing_ok=True)

    def check(self) -> None:
        """See `Claim`."""
        if not self._is_mine():
            raise UserError(f"{self._lock.parent}: taken over by another run, so this run ends without saving")

    def _is_mine(self) -> bool:
        return self._lock.exists() and self._token in self._lock.read_text()

    def _write(self) -> None:
        self._beats += 1
        self._lock.write_text(f"{_owner()}\n{self._token} {self._beats}\n")

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                if not self._is_mine():
                    return
                self._write()
            except Exception as error:  # whatever the network raises: the next heartbeat may succeed
                log.warning("%s: the heartbeat could not be written: %s", self._lock, error)


@contextmanager
def _lease(lock: epath.Path) -> Iterator[Claim]:
    lease = _Lease(lock)
    lease.take()
    try:
        yield lease
    finally:
        lease.release()


def _owner() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def _in_use(lock: epath.Path | Path, owner: str) -> ConfigError:
    return ConfigError(
        f"{lock.parent}: used by another run ({owner}); wait until it ends, stop it, or give another --workdir"
    )
