"""Claims of work directories in buckets, which have no locks: an object that its owner keeps rewriting."""

import threading

import pytest
from etils import epath

from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.train import claim


@pytest.fixture
def lock(tmp_path, monkeypatch) -> epath.Path:
    """A file in place of the lock object; the lease needs nothing else of a bucket."""
    monkeypatch.setattr(claim, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(claim, "WATCH_SECONDS", 0.2)
    path = epath.Path(tmp_path / "lock")

    def write_text(self: epath.Path, text: str) -> None:
        part = tmp_path / f"{threading.get_ident()}.part"
        part.write_text(text)
        part.replace(self)

    # Objects are written atomically. With plain writes, a reader would sometimes see an empty file.
    monkeypatch.setattr(type(path), "write_text", write_text)
    return path


def test_a_live_owner_keeps_its_directory_and_a_dead_one_loses_it(lock, monkeypatch):
    with claim._lease(lock) as first:
        with monkeypatch.context() as patch:
            patch.setattr(claim, "WATCH_SECONDS", 600)  # however late the next heartbeat comes
            with pytest.raises(ConfigError, match="used by another run"), claim._lease(lock):
                pass
        first.check()
    assert not lock.exists()
    lock.write_text("process 1 on a host that was lost\n")
    with claim._lease(lock) as second:
        second.check()


def test_an_owner_that_lost_its_connection_notices_the_takeover(lock):
    with claim._lease(lock) as first:
        first._ended.set()  # no more heartbeats
        first._thread.join()
        with claim._lease(lock) as second:
            second.check()
            with pytest.raises(UserError, match="taken over by another run"):
                first.check()
        assert not lock.exists()
