"""Which tokens are sampled, and how often."""

import jax
import numpy as np
import pytest

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.generate import sampling
from omnivinci_jax.generate.request import Sampling
from omnivinci_jax.generate.sampling import SamplingArrays, sampling_arrays

LOGITS = np.log(np.array([[0.4, 0.3, 0.15, 0.1, 0.05], [0.05, 0.1, 0.15, 0.3, 0.4]], np.float32))

sample_tokens, truncate = jax.jit(sampling.sample_tokens), jax.jit(sampling.truncate)


def rows(count: int, **settings) -> SamplingArrays:
    """Returns the same settings for each row, as samples 0, 1, … of one prompt."""
    each = [sampling_arrays(Sampling(**settings), sample) for sample in range(count)]
    return SamplingArrays(*map(np.stack, zip(*each, strict=True)))


def kept(**settings) -> list[list[int]]:
    return [np.flatnonzero(row > -np.inf).tolist() for row in truncate(LOGITS, rows(2, **settings))]


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        (dict(top_k=2), [0, 1], [3, 4]),
        (dict(top_k=9), [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (dict(top_p=0.5), [0, 1], [3, 4]),
        (dict(top_p=0.39), [0], [4]),
        (dict(top_p=0.84), [0, 1, 2], [2, 3, 4]),
        (dict(top_p=0.999999), [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        # After top_k, the first of three tokens has probability 0.47: top_p needs two for 0.5.
        (dict(top_k=3, top_p=0.5), [0, 1], [3, 4]),
    ],
)
def test_kept_tokens(settings, first, second):
    assert kept(**settings) == [first, second]


def draws(count: int, seed: int = 0, **settings) -> np.ndarray:
    same_sample = rows(2, **{"temperature": 1.0, "seed": seed} | settings)._replace(sample=np.zeros(2, np.int32))
    seen = np.zeros(LOGITS.shape, bool)
    return np.array([sample_tokens(LOGITS, seen, np.full(2, step, np.int32), same_sample) for step in range(count)])


def test_tokens_are_drawn_as_often_as_they_are_likely():
    found = [np.bincount(column, minlength=5) / 2000 for column in draws(2000).T]
    np.testing.assert_allclose(found, np.exp(LOGITS), atol=0.04)
    cold = [np.bincount(column, minlength=5) / 500 for column in draws(500, temperature=0.5).T]
    np.testing.assert_allclose(cold, np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum(axis=1)[:, None], atol=0.08)


def test_seeds_and_samples():
    assert (draws(50) == draws(50)).all()
    assert (draws(50) != draws(50, seed=1)).any()
    same = np.repeat(LOGITS[:1], 64, axis=0)
    drawn = sample_tokens(same, np.zeros(same.shape, bool), np.zeros(64, np.int32), rows(64, temperature=1.0))
    assert len(set(drawn.tolist())) > 2  # several answers to one prompt differ
    seventh = jax.tree.map(lambda x: x[7:8], rows(64, temperature=1.0))
    alone = sample_tokens(same[:1], np.zeros((1, 5), bool), np.zeros(1, np.int32), seventh)
    assert alone[0] == drawn[7]  # and none depends on its neighbours


def test_greedy_and_penalty():
    seen = np.zeros(LOGITS.shape, bool)
    seen[:, [0, 4]] = True
    steps = np.zeros(2, np.int32)
    assert sample_tokens(LOGITS, seen, steps, rows(2)).tolist() == [0, 4]
    assert sample_tokens(LOGITS, seen, steps, rows(2, repetition_penalty=1.5)).tolist() == [1, 3]


def test_each_row_has_its_own_settings():
    settings = [
        dict(),
        dict(temperature=1.0, seed=3),
        dict(temperature=0.7, top_k=2, seed=4),
        dict(temperature=1.3, top_p=0.6, seed=5),
        dict(repetition_penalty=1.5),
        dict(temperature=1.0, top_k=3, top_p=0.5, repetition_penalty=1.2, seed=6),
    ]
    each = [sampling_arrays(Sampling(**setting)) for setting in settings]
    together = SamplingArrays(*map(np.stack, zip(*each, strict=True)))
    logits = np.random.default_rng(0).normal(size=(len(settings), 50)).astype(np.float32)
    seen = np.random.default_rng(1).random(logits.shape) < 0.3
    for step in range(20):
        steps = np.arange(len(settings), dtype=np.int32) + step
        found = sample_tokens(logits, seen, steps, together)
        for row, alone in enumerate(each):
            alone = jax.tree.map(lambda x: np.asarray(x)[None], alone)
            one = slice(row, row + 1)
            assert sample_tokens(logits[one], seen[one], steps[one], alone)[0] == found[row]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(temperature=-0.5), "temperature is -0.5: it must be 0 (greedy) or more"),
        (dict(temperature=float("nan")), "temperature is nan: it must be 0 (greedy) or more"),
        (dict(top_p=0.0), "top_p is 0.0: it must be above 0, and at most 1"),
        (dict(top_k=-1), "top_k is -1: it must be 0 (all tokens) or more"),
        (dict(max_new_tokens=0), "max_new_tokens is 0: it must be 1 or more"),
        (dict(stop=("",)), "stop is ('',): it must be texts that are not empty"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ConfigError) as error:
        Sampling(**settings)
    assert str(error.value) == message
