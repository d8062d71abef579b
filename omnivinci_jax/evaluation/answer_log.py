"""Answers on disk, a line each as they come, so that a killed evaluation goes on where it was."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from omnivinci_jax import strict_json
from omnivinci_jax.data.records import check_skipped
from omnivinci_jax.errors import UserError, describe_at
from omnivinci_jax.evaluation.samples import Sample
from omnivinci_jax.generate.answers import Answer
from omnivinci_jax.paths import AnyPath


class AnswerLog:
    """A JSONL file: the settings in its first line, then a line for each answer. `answers` is keyed by question."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        """Opens a log, or starts one.

        Args:
            path: of the file.
            settings: everything that an answer depends on; `questions` is their `digest`.

        Raises:
            UserError: the file has answers with other settings or to other questions, or is no such file.
        """
        self.path = path
        self.answers: dict[int, dict[str, Any]] = {}
        settings = json.loads(strict_json.dumps(settings))
        if path.exists():
            self._read(settings)
        else:
            path.write_text(strict_json.dumps({"settings": settings}) + "\n")

    def add(self, question: int, **answer: Any) -> None:
        """Adds the answer to a question, also to the file."""
        self.answers[question] = answer
        with open(self.path, "a") as file:
            file.write(strict_json.dumps({"question": question, **answer}) + "\n")

    def collect(
        self,
        asked: Sequence[tuple[int, Sample]],
        answers: Iterable[dict[str, Any] | Exception],
        problems: dict[int, str],
        questions: int,
        max_skipped: float,
        path: AnyPath,
    ) -> dict[int, str]:
        """Adds answers as they come; returns the problems with a line for each question that raised something.

        Args:
            asked: indices and questions, in the order of the answers.
            answers: the fields of each answer, or what the question raised.
            problems: lines of questions that failed before.
            questions: number of all questions, also of those answered before.
            max_skipped, path: as in `check_failures`.

        Raises:
            DataError: see `check_failures`.
        """
        problems = dict(problems)
        done = questions - len(asked)
        bar = tqdm(
            asked, f"evaluate {path.name}", questions, initial=done, unit=" questions", leave=False, mininterval=0.5
        )
        for (index, sample), answer in zip(bar, answers, strict=True):
            if isinstance(answer, Exception):
                problems[index] = describe_at(sample.where, answer)
                check_failures(problems, questions, max_skipped, path)
            else:
                self.add(index, **answer)
        return problems

    def _read(self, settings: dict[str, Any]) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a killed process may have left half a line
        try:
            first, *lines = map(json.loads, whole.splitlines())
            found = first["settings"]
            self.answers = {line.pop("question"): line for line in lines}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.path}: is no file of answers: delete it, or give another --out") from None
        for key in (*settings, *found):
            if found.get(key) != settings.get(key):
                other = "to other questions" if key == "questions" else (
                    f"for {key} = {found.get(key)!r}, not {settings.get(key)!r}"
                )  # fmt: skip
                raise UserError(f"{self.path}: has answers {other}: delete it, or give another --out")
        if whole != content:
            self.path.write_bytes(whole)


def answer_fields(answer: Answer) -> dict[str, Any]:
    """Returns the fields of an answer that the log has."""
    return {"answer": answer.text.strip(), "finish": answer.finish, "tokens": len(answer.tokens)}


def check_failures(problems: dict[int, str], questions: int, max_skipped: float, path: AnyPath) -> None:
    """Raises DataError if the problems are more than the share `max_skipped` of the questions, and of 100."""
    if len(problems) > max_skipped * max(questions, 100):
        check_skipped([problems[index] for index in sorted(problems)], questions, max_skipped, path)


def digest(questions: Iterable[bytes]) -> str:
    """Returns a hash of questions."""
    return hashlib.sha256(b"".join(hashlib.sha256(question).digest() for question in questions)).hexdigest()[:16]
