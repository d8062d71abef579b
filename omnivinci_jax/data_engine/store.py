"""Results by the content of what they depend on, in one SQLite file: a killed engine repeats none of them."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from omnivinci_jax.errors import UserError

_TABLES = """
CREATE TABLE IF NOT EXISTS results (
    key BLOB PRIMARY KEY, value TEXT NOT NULL, kind TEXT NOT NULL, prompt_tokens INTEGER, answer_tokens INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    kind TEXT PRIMARY KEY, results INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL
);
CREATE TRIGGER IF NOT EXISTS count AFTER INSERT ON results BEGIN
    INSERT INTO totals VALUES (new.kind, 1, new.prompt_tokens, new.answer_tokens) ON CONFLICT (kind) DO UPDATE SET
        results = results + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        answer_tokens = answer_tokens + excluded.answer_tokens;
END;
"""
_PUT = "INSERT INTO results VALUES (?, ?, ?, ?, ?)"
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class Total(NamedTuple):
    """Stored results of a kind, and the tokens that they took."""

    results: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0


def digest(*content: Any) -> bytes:
    """Returns a key for JSON values."""
    return hashlib.sha256(_ENCODER.encode(content).encode()).digest()[:16]


class Store:
    """The results of a folder. Each `put` is complete on its own, however the process ends."""

    def __init__(self, path: Path):
        self._path = path
        with self._as_user_error():
            self._database = sqlite3.connect(path, isolation_level=None)
            # In a write-ahead log a commit is one write without a wait for the disk: it outlives the process.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_TABLES)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def get(self, key: bytes) -> str | None:
        """Returns a result, or None."""
        with self._as_user_error():
            found = self._database.execute("SELECT value FROM results WHERE key = ?", (key,)).fetchone()
        return found and found[0]

    def put(self, key: bytes, kind: str, value: str, prompt_tokens: int = 0, answer_tokens: int = 0) -> str:
        """Stores a result; returns the one that is kept, which is the first of equal keys."""
        try:
            with self._as_user_error():
                self._database.execute(_PUT, (key, value, kind, prompt_tokens, answer_tokens))
            return value
        except sqlite3.IntegrityError:
            kept = self.get(key)
            assert kept is not None
            return kept

    def totals(self) -> dict[str, Total]:
        """Returns the totals of each kind, over all runs."""
        with self._as_user_error():
            return {kind: Total(*total) for kind, *total in self._database.execute("SELECT * FROM totals")}

    @contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise UserError(f"{self._path}: {error}; free some space there, or delete a damaged file") from None
