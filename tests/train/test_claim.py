"""Who holds a work directory, where there are no locks: an object that its owner writes again and again."""

import threading

import pytest
from etils import epath

from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.train import claim


@pytest.fixture
def lock(tmp_path, monkeypatch) -> epath.Path:
    """A file stands for the object: the lease asks no more of it."""
    monkeypatch.setattr(claim, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(claim, "WATCH_SECONDS", 0.2)
    path = epath.Path(tmp_path / "lock")

    def write_text(self: epath.Path, text: str) -> None:
        part = tmp_path / f"{threading.get_ident()}.part"
        part.write_text(text)
        part.replace(self)

    # Whole or not at all, as an object is: a reader would sometimes find a file that is being written empty.
    monkeypatch.setattr(type(path), "write_text", write_text)
    return path


def test_a_live_owner_is_refused_and_a_dead_one_replaced(lock, monkeypatch):
    with claim._lease(lock) as first:
        with monkeypatch.context() as patch:
            patch.setattr(claim, "WATCH_SECONDS", 600)  # however late the next sign of life comes
            with pytest.raises(ConfigError, match="a run is at it"), claim._lease(lock):
                pass
        first.check()
    assert not lock.exists()
    lock.write_text("process 1 on a host that was lost\n")
    with claim._lease(lock) as second:
        second.check()


def test_who_was_cut_off_finds_out_before_it_writes(lock):
    with claim._lease(lock) as first:
        first._ended.set()  # no more signs of life
        first._thread.join()
        with claim._lease(lock) as second:
            second.check()
            with pytest.raises(UserError, match="another run has taken it over"):
                first.check()
        assert not lock.exists()
