"""That one run alone is at a work directory."""

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

# How often a run that is in a bucket shows that it lives, and how long another watches for that.
HEARTBEAT_SECONDS = 10.0
WATCH_SECONDS = 3 * HEARTBEAT_SECONDS


@contextmanager
def sole_run(workdir: epath.Path) -> Iterator["Claim"]:
    """Holds a work directory while the run lives.

    Raises:
        ConfigError: another run holds it.
    """
    lock = workdir / "lock"
    with _lease(lock) if is_remote(lock) else _locked(Path(lock)) as claim:
        yield claim


class Claim:
    """A work directory that is held; on a disk that cannot be lost."""

    def check(self) -> None:
        """Raises UserError where another run has taken the directory over, so that nothing is written into it."""


@contextmanager
def _locked(lock: Path) -> Iterator[Claim]:
    """The operating system's lock, which ends with the process however that ends."""
    with open(lock, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise _held(lock, file.read().strip()) from None
        file.truncate(0)
        file.write(_owner() + "\n")
        file.flush()
        yield Claim()


class _Lease(Claim):
    """An object that its owner writes again and again, since buckets have no locks.

    Who finds one watches it: if it changes, its owner lives; if it stays as it is, the owner was killed, and the
    directory is taken over. A run that was only cut off from the bucket for so long finds that out before it saves.
    """

    def __init__(self, lock: epath.Path):
        self._lock, self._token, self._beats = lock, uuid.uuid4().hex, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def take(self) -> None:
        """Raises ConfigError where a live run holds it."""
        if self._lock.exists():
            before, deadline = self._lock.read_text(), time.monotonic() + WATCH_SECONDS
            while time.monotonic() < deadline and self._lock.exists():
                if self._lock.read_text() != before:
                    raise _held(self._lock, before.splitlines()[0])
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
            raise UserError(f"{self._lock.parent}: another run has taken it over, so this one ends without saving")

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
            except Exception as error:  # whatever the network does: the next beat may come through
                log.warning("%s: no sign of life could be written: %s", self._lock, error)


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


def _held(lock: epath.Path | Path, owner: str) -> ConfigError:
    return ConfigError(f"{lock.parent}: a run is at it ({owner}); wait for its end, stop it, or give another --workdir")
