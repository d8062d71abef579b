"""The scores of answers: overall and by kind with confidence intervals, failures apart, and why each answer counted."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from omnivinci_jax import strict_json
from omnivinci_jax.errors import DataError, describe_at
from omnivinci_jax.evaluation.metrics import Metric, Verdict, confidence_interval
from omnivinci_jax.evaluation.samples import Sample
from omnivinci_jax.paths import atomic_file
from omnivinci_jax.sequence.chat import Media

CONFIDENCE = 0.95


class Score(NamedTuple):
    """A metric over `count` answers, with the bounds of its confidence interval (None for a single answer)."""

    value: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Scores:
    """All scores of an evaluation.

    scale: see `Metric`. samples: a record for each question. failures: a line for each that has no score; they count
    in no score.
    """

    overall: Score
    by_kind: dict[str, Score]
    scale: float
    samples: list[dict[str, Any]]
    failures: list[str]


def judge_answers(
    metric: Metric, samples: Sequence[Sample | None], answers: Mapping[int, dict[str, Any]], problems: dict[int, str]
) -> Scores:
    """Judges all answers.

    Args:
        metric: the metric.
        samples: the questions; None for those that could not be read.
        answers: by index of the question: `answer` is the text.
        problems: a line for each question without an answer.

    Raises:
        DataError: there is nothing to score.
    """
    problems, records, by_kind = dict(problems), [], defaultdict(list)
    for index, sample in enumerate(samples):
        record: dict[str, Any] = {"where": sample.where, **_asked(sample)} if sample else {}
        if sample and index not in problems:
            given = answers[index]
            try:
                verdict = metric.judge(given["answer"], sample.reference)
            except DataError as error:
                problems[index] = describe_at(sample.where, error)
            else:
                by_kind[sample.kind].append(verdict)
                record |= {**given, "score": verdict.score, "why": verdict.why}
        records.append(record | ({"error": problems[index]} if index in problems else {}))
    failures = [problems[index] for index in sorted(problems)]
    verdicts = [verdict for kind in by_kind.values() for verdict in kind]
    if not verdicts:
        raise DataError(f"no question could be scored: {failures[0]}")
    kinds = {kind: _score(metric, found) for kind, found in sorted(by_kind.items())}
    return Scores(_score(metric, verdicts), kinds, metric.scale, records, failures)


def _asked(sample: Sample) -> dict[str, Any]:
    content = [item for message in sample.conversation.messages for item in message.content]
    shown = {
        "id": sample.record.get("id"),
        "kind": sample.kind,
        "question": "".join(item for item in sample.conversation.messages[-1].content if isinstance(item, str)).strip(),
        "media": [item.path for item in content if isinstance(item, Media)],
        "options": list(sample.reference.choices),
    }
    return {key: value for key, value in shown.items() if value} | {"right": list(sample.reference.answers)}


def _score(metric: Metric, verdicts: list[Verdict]) -> Score:
    value = metric.combine(np.array([verdict.sums for verdict in verdicts]).sum(axis=0))
    low, high = confidence_interval(metric, verdicts, CONFIDENCE) or (None, None)
    return Score(value, low, high, len(verdicts))


def write_scores(path: Path, name: str, scores: Scores, settings: dict[str, Any], seconds: float) -> None:
    """Writes the scores as JSON to `path`, and beside it a line for each question to NAME.samples.jsonl."""
    lines = "".join(strict_json.dumps(record) + "\n" for record in scores.samples)
    with atomic_file(path.with_suffix(".samples.jsonl")) as part:
        part.write_text(lines)
    results = {
        "metric": name,
        "overall": scores.overall._asdict(),
        "by_kind": {kind: score._asdict() for kind, score in scores.by_kind.items()},
        "confidence": CONFIDENCE,
        "failed": len(scores.failures),
        "failures": scores.failures,
        "settings": settings,
        "seconds": round(seconds, 1),
    }
    with atomic_file(path) as part:
        part.write_text(strict_json.dumps(results, indent=2) + "\n")


def describe_scores(name: str, scores: Scores, settings: dict[str, Any]) -> str:
    """Formats scores as a Markdown table, with what they depend on and the failures below."""
    rows = [_row(kind, score, scores.scale) for kind, score in scores.by_kind.items()]
    rows = rows if len(rows) > 1 else []
    lines = [f"| {name} | score | 95 % interval | answers |", "|---|---|---|---|", *rows]
    lines += [_row("**overall**", scores.overall, scores.scale), ""]
    lines.append(", ".join(f"{key}: {value!r}" for key, value in settings.items() if key != "questions"))
    lines.append(f"failures: {len(scores.failures)} of {len(scores.samples)} questions, counted in no score")
    return "\n".join([*lines, *(f"  {failure}" for failure in scores.failures[:20])])


def _row(kind: str, score: Score, scale: float) -> str:
    interval = "" if score.low is None or score.high is None else f"{scale * score.low:.1f} to {scale * score.high:.1f}"
    return f"| {kind} | {scale * score.value:.1f} | {interval} | {score.count} |"
