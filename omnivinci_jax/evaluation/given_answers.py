"""Answers that another program gave: `omnivinci evaluate --answers` scores them without a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnivinci_jax.errors import UserError
from omnivinci_jax.evaluation.samples import Sample


def read_answers(
    path: Path, samples: Sequence[Sample | None], problems: dict[int, str]
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Reads lines of {"id": ..., "answer": "..."}.

    Args:
        path: of the JSONL file.
        samples: the questions, which the records' `id` names; None for those that could not be read.
        problems: a line for each of the latter.

    Returns:
        The answers as `judge_answers` takes them, and the problems with a line for each question without an answer.

    Raises:
        UserError: a line is no answer, or one to another question or to the same again; questions share an `id`.
    """
    questions: dict[str, int] = {}
    for index, sample in enumerate(samples):
        if sample:
            name = str(sample.record.get("id"))
            if "id" not in sample.record or name in questions:
                raise UserError(f"{sample.where}: --answers needs an id of its own in each question")
            questions[name] = index
    answers: dict[int, dict[str, Any]] = {}
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            name, answer = str(given["id"]), given["answer"].strip()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f'{path}:{number}: give {{"id": ..., "answer": "..."}}, one a line') from None
        if name not in questions:
            if not problems:
                raise UserError(f"{path}:{number}: answers {name!r}, which is no question of the data file")
            continue  # of a question that could not be read
        if questions[name] in answers:
            raise UserError(f"{path}:{number}: answers {name!r} a second time")
        answers[questions[name]] = {"answer": answer}
    missing = {
        index: f"{sample.where}: {path} has no answer to {sample.record['id']!r}"
        for index, sample in enumerate(samples)
        if sample and index not in answers
    }
    return answers, problems | missing
