"""The answers of a run on disk, a line each as they come: a killed run goes on, and failures stand apart."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any


class AnswerFile:
    """Answers by question, also in a JSONL file if `path` is given; threads can share it."""

    def __init__(self, path: str = ""):
        """Opens the file, or starts one; half a line at its end, of a killed run, is dropped.

        Raises:
            ValueError: it is no file of answers.
        """
        self._path, self._lock = Path(path) if path else None, threading.Lock()
        self._answers: dict[str, str] = {}
        if self._path and self._path.exists():
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            try:
                lines = [json.loads(line) for line in whole.splitlines()]
                self._answers = {line["key"]: line["answer"] for line in lines if line["key"] and "answer" in line}
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path}: is no file of answers: delete it, or name another") from None
            if whole != content:
                self._path.write_bytes(whole)

    def get(self, key: str) -> str | None:
        """Returns an answer that is there."""
        return self._answers.get(key)

    def add(self, key: str, where: str, **outcome: str) -> None:
        """Adds an `answer` or an `error`; only answers are not asked again."""
        with self._lock:
            if "answer" in outcome:
                self._answers[key] = outcome["answer"]
            if self._path:
                with open(self._path, "a") as file:
                    file.write(json.dumps({"key": key, "question": where, **outcome}) + "\n")


def key_of(*parts: Any) -> str:
    """Returns a name for a question: the same for the same task, document, text and settings alone."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]
