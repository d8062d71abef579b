"""Each metric equals its library, or what its published script gives (recorded) for answers that trap metrics."""

import jiwer
import numpy as np
import pytest
import sacrebleu
from anls import anls_score
from whisper_normalizer.english import EnglishTextNormalizer

from omnivinci_jax.errors import DataError
from omnivinci_jax.evaluation import flags
from omnivinci_jax.evaluation.metrics import METRICS, Metric, Reference, confidence_interval, make_metric

PEOPLE = ("2", "2", "2", "2", "two", "3", "2.", "don't know", "a 2", "1,000")
CHOICES = ("A man", "A woman", "Two men")
SPOKEN = (
    ("Mr. Brown paid twenty-five dollars.", "mister brown paid $25"),
    ("I don't know the colour", "I do not know color"),
    ("café au lait", "cafe olé"),
    ("Seven seas", ""),
    ("we heard nothing", "I'm sorry, I cannot transcribe this audio."),
)


def score(name: str, answer: str, *right: str, choices: tuple[str, ...] = ()) -> float:
    return make_metric(name).judge(answer, Reference(right, choices)).score


def corpus(metric: Metric, pairs) -> float:
    return metric.combine(np.sum([metric.judge(said, Reference((right,))).sums for right, said in pairs], axis=0))


def test_the_flag_offers_every_metric():
    assert (flags.FORWARD, *METRICS) == flags.METRICS


@pytest.mark.parametrize(
    ("answer", "people", "accuracy"),
    [
        ("two", PEOPLE, 1), ("Two.", PEOPLE, 1), ("the 2", PEOPLE, 1), ("3", PEOPLE, 0.3), ("don't know", PEOPLE, 0.3),
        ("dont know", PEOPLE, 0), ("1,000", PEOPLE, 0.3), ("1000", PEOPLE, 0.3), ("", PEOPLE, 0),
        ("I cannot tell", PEOPLE, 0), ("夏天", ("夏天",) * 10, 1), ("dont", ("don't",) * 10, 1),
        ("yes, it is", ("yes",) * 9 + ("yes it is",), 0.3), ("2\t", ("2",) * 3 + ("4",) * 7, 0.9),
        ("ten past/four", ("10 past 4",) * 10, 1), ("7", ("7", "7", "8"), 4 / 9), ("a/b", ("a/b",) * 10, 0),
        ("None", ("0",) * 10, 1), ("$5.00?", ("$5.00",) * 2 + ("5",) * 8, 0.6),
    ],
)  # fmt: skip
def test_vqa_accuracy(answer, people, accuracy):
    assert score("vqa", answer, *people) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("A man", 1), ("man", 0), ("(A) A man", 1), ("A", 0), ("B", 0), ("a man and a woman", 0), ("a MAN!", 1),
        ("The speaker is a man.", 1), ("men", 0), ("Two men", 0), ("", 0), ("I cannot tell", 0),
        ("A man, not two men", 0),
    ],
)  # fmt: skip
def test_mmau_string_match(answer, right):
    assert score("string_match", answer, "A man", choices=CHOICES) == right
    assert score("string_match", answer, "A", choices=CHOICES) == right  # a file with letters means their choices


@pytest.mark.parametrize(
    ("target", "answer", "right"),
    [
        ("100", "104.9", 1), ("100", "105.1", 0), ("5%", "0.05", 1), ("5%", "5", 0), ("0", "0", 1), ("0", "0.01", 0),
        ("yes", "Yes", 1), ("yes", "yes.", 0), ("1,000", "1000", 0), ("four", "4", 0), ("100", "95", 1),
        ("-100", "-104", 1), ("nan", "nan", 0), ("3.0", "3", 1), ("１００", "100", 1), ("7", "", 0),
    ],
)  # fmt: skip
def test_relaxed_accuracy(target, answer, right):
    assert score("relaxed", answer, target) == right


def test_anls_takes_the_nearest_answer():
    for answer in ("Tuesday", "tuesday ", "Tusday", "Thursday", "", "zweiter Straße", "I cannot read it"):
        right = ("tuesday", "Zweite  Straße")
        assert score("anls", answer, *right) == anls_score(answer, list(right))
    assert score("anls", "Tusday", "Tuesday") == pytest.approx(6 / 7)


def test_exact_match():
    for answer, right in (("Two dogs.", 1), ("two  DOGS", 1), ("dogs", 0), ("", 0), ("2 dogs", 0)):
        assert score("exact", answer, "two dogs", "zwei Hunde") == right
    assert score("exact", "zwei hunde", "two dogs", "zwei Hunde") == 1
    assert score("exact", "B", "A woman", choices=CHOICES) == score("exact", "a woman", "B", choices=CHOICES) == 1


def test_choice_needs_options_and_a_right_answer_among_them():
    assert score("choice", "It was the woman: (B)", "A woman", choices=("A. A man", "B. A woman")) == 1
    with pytest.raises(DataError, match="the question has no options, which this metric needs"):
        score("choice", "B", "B")
    with pytest.raises(DataError, match="the right answer 'a dog' is none of the options"):
        score("choice", "B", "a dog", choices=CHOICES)


def test_wer_is_of_the_corpus_after_whispers_normalizer():
    normalize, metric = EnglishTextNormalizer(), make_metric("wer")
    expected = jiwer.wer(*([normalize(pair[side]) for pair in SPOKEN] for side in (0, 1)))
    assert corpus(metric, SPOKEN) == pytest.approx(expected)
    assert score("wer", "mister brown paid $25", "Mr. Brown paid twenty-five dollars.") == 0
    assert metric.judge("a b", Reference(("a c d",))).why == "1 substituted, 1 deleted, 0 inserted of 3 words"
    assert score("wer", "dog.", "Dog") == 0 and make_metric("wer", "basic").judge("2", Reference(("two",))).score == 1
    with pytest.raises(DataError, match=r"the reference '\[noise\]' has no words"):
        score("wer", "dog", "[noise]")


def test_bleu_is_of_the_corpus():
    pairs = [("The cat sat on the mat today.", "the cat sat on a mat today."), ("Good night to you all", "Good night"),
             ("Il pleut à Paris ce soir.", "Il pleut à Paris ce soir."), ("No", "")]  # fmt: skip
    references, answers = zip(*pairs, strict=True)
    for tokenizer in ("13a", "char"):
        expected = sacrebleu.corpus_bleu(list(answers), [list(references)], tokenize=tokenizer).score
        assert corpus(make_metric("bleu", bleu_tokenizer=tokenizer), pairs) == pytest.approx(expected)


def test_the_interval_covers_what_resampling_gives():
    metric, random = make_metric("exact"), np.random.default_rng(1)
    right = random.random(400) < 0.7
    verdicts = [metric.judge("yes" if item else "no", Reference(("yes",))) for item in right]
    low, high = confidence_interval(metric, verdicts) or (0, 0)
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert abs(low - (right.mean() - half)) < 0.008 and abs(high - (right.mean() + half)) < 0.008
    assert confidence_interval(metric, verdicts) == (low, high)  # the same seed
    assert confidence_interval(metric, verdicts[:1]) is None
    wer = make_metric("wer")
    lengths = [wer.judge("a", Reference(("a b",)))] * 3 + [wer.judge("x", Reference(("x",)))]
    assert confidence_interval(wer, lengths) == (0.2, 0.5)  # sums of errors and words, not a mean of rates
