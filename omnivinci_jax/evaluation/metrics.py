"""Metrics of answers: each judges one answer, and combines the sums of all answers into a score."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.stats import bootstrap

from omnivinci_jax.data.questions import Question, without_letters
from omnivinci_jax.errors import DataError, needs_extra
from omnivinci_jax.evaluation.choices import find_option
from omnivinci_jax.evaluation.vqa import vqa_accuracy

_WORD = re.compile(r"\b\w+\b")


@dataclass(frozen=True)
class Reference:
    """What an answer is compared with: the right answers, and the choices as the data file has them (or none)."""

    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """The choices without their letters."""
        return tuple(without_letters(self.choices))

    @property
    def right(self) -> int:
        """Index of the right option; raises DataError if there are no options, or the answer is none of them."""
        if not self.choices:
            raise DataError("the question has no options, which this metric needs")
        index = Question("", self.options).option(self.answers[0])
        if index is None:
            raise DataError(f"the right answer {self.answers[0]!r} is none of the options")
        return index


class Verdict(NamedTuple):
    """The score of an answer, why it is that, and numbers whose sums over all answers give the metric."""

    score: float
    why: str
    sums: tuple[float, ...]


@dataclass(frozen=True)
class Metric:
    """A metric.

    judge: judges an answer (stripped); raises DataError for an unusable reference.
    combine: the metric, from sums over answers.
    scale: 100 if scores are printed as per cent; BLEU already is.
    """

    judge: Callable[[str, Reference], Verdict]
    combine: Callable[[Float64[np.ndarray, " k"]], float]
    scale: float = 100.0


def make_metric(name: str, normalizer: str = "english", bleu_tokenizer: str = "13a") -> Metric:
    """Makes a metric of METRICS by its name.

    Args:
        name: of METRICS.
        normalizer: of WER: Whisper's for English, or its basic one for other languages.
        bleu_tokenizer: of sacrebleu.

    Raises:
        UserError: its library is not installed.
    """
    with needs_extra("evaluate"):
        return METRICS[name](normalizer, bleu_tokenizer)


def confidence_interval(
    metric: Metric, verdicts: Sequence[Verdict], level: float = 0.95, resamples: int = 1000
) -> tuple[float, float] | None:
    """Returns the percentile bootstrap interval over the answers; None for a single answer."""
    if len(verdicts) < 2:
        return None
    columns = np.array([verdict.sums for verdict in verdicts]).T

    def statistic(*samples: np.ndarray, axis: int) -> np.ndarray:
        sums = np.stack([sample.sum(axis=axis) for sample in samples], axis=-1)
        return np.apply_along_axis(metric.combine, -1, sums)

    found = bootstrap(
        columns, statistic, paired=True, vectorized=True, confidence_level=level, n_resamples=resamples,
        method="percentile", rng=np.random.default_rng(0), batch=max(1, 10_000_000 // columns.size),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def _mean(judge: Callable[[str, Reference], tuple[float, str]], *_: str) -> Metric:
    """Makes a metric that is the mean of its scores."""

    def verdict(answer: str, reference: Reference) -> Verdict:
        score, why = judge(answer, reference)
        return Verdict(score, why, (score, 1.0))

    return Metric(verdict, lambda sums: float(sums[0] / sums[1]))


def _exact(answer: str, reference: Reference) -> tuple[float, str]:
    right = any(Question(text, reference.options).is_right(answer) for text in reference.answers)
    return float(right), "is the right answer" if right else "is not the right answer"


def _choice(answer: str, reference: Reference) -> tuple[float, str]:
    right, found = reference.right, find_option(answer, reference.options)
    return float(found.index == right), found.why


def _likelihood(answer: str, reference: Reference) -> tuple[float, str]:
    return _choice(answer, reference)[0], f"{answer} is the likeliest option"


def _string_match(answer: str, reference: Reference) -> tuple[float, str]:
    """MMAU's and MMAR's: the answer has all words of the right choice, and no word that only wrong ones have."""
    right, said = reference.answers[0], _words(answer)
    if re.fullmatch(r"\(?[A-Z]\)?", right):  # of a file that gives the letter
        right = reference.choices[reference.right]
    wanted = _words(right)
    wrong = {word for choice in reference.choices if _words(choice) != wanted for word in _words(choice)} - wanted
    if not said:
        return 0.0, "the answer has no words"
    if missing := wanted - said:
        return 0.0, f"lacks {', '.join(sorted(missing))}"
    if extra := said & wrong:
        return 0.0, f"has words of wrong choices: {', '.join(sorted(extra))}"
    return 1.0, "has all words of the right choice alone"


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _relaxed(answer: str, reference: Reference) -> tuple[float, str]:
    """ChartQA's: numbers may differ by 5 %, other texts only in case."""
    value = _number(answer)
    for right in reference.answers:
        target = _number(right)
        if value is not None and target:
            if abs(value - target) / abs(target) <= 0.05:
                return 1.0, f"within 5 % of {right}"
        elif answer.lower() == right.lower():
            return 1.0, "the same text"
    return 0.0, "neither the same text nor within 5 %"


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _anls() -> Callable[[str, Reference], tuple[float, str]]:
    from anls import anls_score

    def judge(answer: str, reference: Reference) -> tuple[float, str]:
        score = anls_score(prediction=answer, gold_labels=list(reference.answers), threshold=0.5)
        return score, f"similarity {score:.3f} to the nearest answer (0 if below 0.5)"

    return judge


def _vqa(answer: str, reference: Reference) -> tuple[float, str]:
    score = vqa_accuracy(answer, reference.answers)
    return score, f"agrees with enough of {len(reference.answers)} people for {score:.3f}"


def _wer(normalizer: str, _: str) -> Metric:
    """Word error rate of the whole corpus, by jiwer, after Whisper's normalizer."""
    import jiwer
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    normalize = {"english": EnglishTextNormalizer, "basic": BasicTextNormalizer}[normalizer]()

    def judge(answer: str, reference: Reference) -> Verdict:
        expected = normalize(reference.answers[0]).strip()
        if not expected:
            raise DataError(f"the reference {reference.answers[0]!r} has no words")
        found = jiwer.process_words(expected, normalize(answer).strip())
        errors, words = found.substitutions + found.deletions + found.insertions, len(expected.split())
        counts = f"{found.substitutions} substituted, {found.deletions} deleted, {found.insertions} inserted"
        return Verdict(errors / words, f"{counts} of {words} words", (float(errors), float(words)))

    return Metric(judge, lambda sums: float(sums[0] / sums[1]))


def _bleu(_: str, tokenizer: str) -> Metric:
    """BLEU of the whole corpus, by sacrebleu."""
    from sacrebleu import BLEU

    bleu = BLEU(tokenize=tokenizer, effective_order=True)

    def judge(answer: str, reference: Reference) -> Verdict:
        found = bleu.sentence_score(answer, list(reference.answers))
        sums = (*found.counts, *found.totals, found.sys_len, found.ref_len)
        return Verdict(found.score, f"BLEU of this sentence: {found.score:.1f}", tuple(map(float, sums)))

    def combine(sums: Float64[np.ndarray, " k"]) -> float:
        order = (len(sums) - 2) // 2
        counts, totals, (system, reference) = sums[:order], sums[order : 2 * order], sums[2 * order :]
        correct, total = (list(map(int, part)) for part in (counts, totals))
        return BLEU.compute_bleu(correct, total, int(system), int(reference), smooth_method="exp").score

    return Metric(judge, combine, scale=1.0)


METRICS: dict[str, Callable[[str, str], Metric]] = {
    "exact": partial(_mean, _exact),
    "choice": partial(_mean, _choice),
    "likelihood": partial(_mean, _likelihood),
    "string_match": partial(_mean, _string_match),
    "relaxed": partial(_mean, _relaxed),
    "anls": lambda *_: _mean(_anls()),
    "vqa": partial(_mean, _vqa),
    "wer": _wer,
    "bleu": _bleu,
}
