"""Audits questions for shortcuts: baselines that know only the text, or also one stream's ground truth.

    omnivinci av_world audit data/av_world

For each kind of question and each baseline the table gives two accuracies on the held-out split: that of the best of
some hundred rules ("the longest sight", "the third option"), and that of a linear scorer over the same features.
The rule is chosen and the scorer fitted on the full clips of the train split. Half of the `when` questions are about
sights and half about sounds, so one stream answers more than half of them; the other stream still reveals the clip's
duration.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from omnivinci_jax.av_world.questions import KINDS, NUMBERS, Kind, Question, one_of_each
from omnivinci_jax.av_world.timeline import COLOURS, LONGEST, SOUNDS, Clip, Event, draw_clips, spans
from omnivinci_jax.errors import UserError

Sense = Literal["text", "vision", "sound"]
SENSES: tuple[Sense, ...] = ("text", "vision", "sound")


@dataclass(frozen=True)
class Result:
    """Accuracy of a baseline on `questions` test questions; chance is 1/4."""

    kind: Kind
    sense: Sense
    questions: int
    best_rule: float
    linear_scorer: float

    @property
    def standard_error(self) -> float:
        """Standard error of an accuracy at chance level."""
        return float(np.sqrt(0.25 * 0.75 / self.questions))


def audit(train: list[Clip], test: list[Clip]) -> list[Result]:
    """Audits every kind of question under every baseline, with one question of each kind per clip."""
    asked_train, asked_test = (
        [(clip, question) for clip in clips for question in one_of_each(clip)] for clips in (train, test)
    )
    return [
        Result(
            kind,
            sense,
            len(test),
            *_accuracies(*(_examples(asked, kind, sense) for asked in (asked_train, asked_test))),
        )
        for kind in KINDS
        for sense in SENSES
    ]


def audit_folder(folder: Path) -> list[Result]:
    """Audits the data set in `folder`; raises UserError if there is none."""
    path = folder / "av_world.json"
    if not path.exists():
        raise UserError(f"{path}: no such file; write the data set first: omnivinci av_world --out {folder}")
    made_with = json.loads(path.read_text())
    train, held_out = (draw_clips(made_with["seed"], name, made_with["clips"][name]) for name in ("train", "held_out"))
    return audit([clip for clip in train if clip.is_full], held_out)


def markdown(results: list[Result]) -> str:
    """Formats the results as a Markdown table: best rule and linear scorer of each baseline, in percent."""
    lines = [
        "| kind | questions | standard error | " + " | ".join(f"{sense} only: rule, scorer" for sense in SENSES) + " |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        row = [result for result in results if result.kind == kind]
        cells = [f"{result.best_rule:.1%}, {result.linear_scorer:.1%}" for result in row]
        lines.append(f"| {kind} | {row[0].questions} | {row[0].standard_error:.1%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def option_features(clip: Clip, question: Question, sense: Sense) -> Float[np.ndarray, "4 features"]:
    """Returns the features that the baseline knows of each option; a rule picks a column's highest or lowest value."""
    known = [np.eye(4)]
    if question.kind == "when":
        seconds = _seconds(question)
        known += [seconds[:, None] / LONGEST, np.eye(4)[seconds.argsort().argsort()]]
    else:
        known.append(np.array([[option == name for name in COLOURS + SOUNDS] for option in question.options], float))
    if sense != "text":
        known.append(_stream_features(clip.sights if sense == "vision" else clip.sounds, clip.duration, question))
    return np.concatenate(known, axis=1)


def _seconds(question: Question) -> Float[np.ndarray, " 4"]:
    return np.array([NUMBERS.index(option) for option in question.options], float)


def _stream_features(stream: tuple[Event, ...], duration: float, question: Question) -> Float[np.ndarray, "4 features"]:
    names = [event.name for event in stream]
    starts, ends = spans(stream).T
    if question.kind == "when":
        seconds = _seconds(question)
        distances = abs(seconds[:, None] + 0.5 - starts)
        in_order = np.sort(distances, axis=1)
        to_asked = distances[:, names.index(question.asked)] if question.asked in names else np.zeros(4)
        return np.column_stack([in_order, to_asked, seconds > duration, duration - seconds])
    before = starts - np.concatenate([[0], ends[:-1]])
    after = np.concatenate([starts[1:], [duration]]) - ends
    facts = np.column_stack([np.ones(4), starts, ends - starts, before, after, starts / duration])
    by_rank = np.concatenate([facts, *(facts * rank[:, None] for rank in np.eye(4))], axis=1)
    rows = [
        by_rank[names.index(option)] if option in names else np.zeros(by_rank.shape[1]) for option in question.options
    ]
    asked_rank = np.eye(4)[names.index(question.asked)] if question.asked in names else np.zeros(4)
    return np.concatenate([np.array(rows), asked_rank[:, None]], axis=1)


def _examples(
    asked: list[tuple[Clip, Question]], kind: Kind, sense: Sense
) -> tuple[Float[np.ndarray, "n 4 features"], Int[np.ndarray, " n"]]:
    chosen = [(clip, question) for clip, question in asked if question.kind == kind]
    features = np.stack([option_features(clip, question, sense) for clip, question in chosen])
    return features, np.array([question.options.index(question.answer) for _, question in chosen])


def _accuracies(
    train: tuple[Float[np.ndarray, "n 4 features"], Int[np.ndarray, " n"]],
    test: tuple[Float[np.ndarray, "m 4 features"], Int[np.ndarray, " m"]],
) -> tuple[float, float]:
    """Returns the accuracies of the best rule and of the linear scorer."""
    (features, answers), (test_features, test_answers) = train, test
    extremes, test_extremes = (
        np.concatenate([values.argmax(axis=1), values.argmin(axis=1)], axis=1) for values in (features, test_features)
    )
    best = (extremes == answers[:, None]).mean(axis=0).argmax()
    rule = (test_extremes[:, best] == test_answers).mean()

    scale = features.std(axis=(0, 1)) + 1e-9
    features, rows = features / scale, np.arange(len(answers))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = features @ weights
        error = softmax(scores, axis=1)
        error[rows, answers] -= 1
        gradient = np.einsum("no,nof->f", error, features) / len(answers)
        value = -log_softmax(scores, axis=1)[rows, answers].mean()
        return value + 0.005 * weights @ weights, gradient + 0.01 * weights

    weights = minimize(loss, np.zeros(features.shape[2]), jac=True, method="L-BFGS-B").x
    scorer = ((test_features / scale @ weights).argmax(axis=1) == test_answers).mean()
    return float(rule), float(scorer)
