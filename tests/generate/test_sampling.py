"""What may be drawn, and how often it is."""

import jax
import numpy as np
import pytest

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.generate.sampling import Sampling, choose, most_likely

LOGITS = np.log(np.array([[0.4, 0.3, 0.15, 0.1, 0.05], [0.05, 0.1, 0.15, 0.3, 0.4]], np.float32))


def kept(**settings) -> list[list[int]]:
    return [np.flatnonzero(row > -np.inf).tolist() for row in most_likely(LOGITS, Sampling(**settings).numbers())]


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        (dict(top_k=2), [0, 1], [3, 4]),
        (dict(top_k=9), [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (dict(top_p=0.5), [0, 1], [3, 4]),
        (dict(top_p=0.39), [0], [4]),
        (dict(top_p=0.84), [0, 1, 2], [2, 3, 4]),
        (dict(top_p=0.999999), [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        # Of three tokens the first has 0.47: two are needed for a half of what is left.
        (dict(top_k=3, top_p=0.5), [0, 1], [3, 4]),
    ],
)
def test_what_is_kept(settings, first, second):
    assert kept(**settings) == [first, second]


def draws(count: int, seed: int = 0, **settings) -> np.ndarray:
    numbers = Sampling(**{"temperature": 1.0, "seed": seed} | settings).numbers()
    seen, rows = np.zeros(LOGITS.shape, bool), np.zeros(2, np.int32)
    one_place = jax.jit(lambda place: choose(LOGITS, seen, rows, place, numbers))
    return np.array([one_place(np.int32(place)) for place in range(count)])


def test_tokens_are_drawn_as_often_as_they_are_likely():
    found = [np.bincount(column, minlength=5) / 2000 for column in draws(2000).T]
    np.testing.assert_allclose(found, np.exp(LOGITS), atol=0.04)
    cold = [np.bincount(column, minlength=5) / 500 for column in draws(500, temperature=0.5).T]
    np.testing.assert_allclose(cold, np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum(axis=1)[:, None], atol=0.08)


def test_seeds_and_samples():
    assert (draws(50) == draws(50)).all()
    assert (draws(50) != draws(50, seed=1)).any()
    same = np.repeat(LOGITS[:1], 64, axis=0)
    numbers = Sampling(temperature=1.0).numbers()
    drawn = choose(same, np.zeros(same.shape, bool), np.arange(64, dtype=np.int32), np.int32(0), numbers)
    assert len(set(drawn.tolist())) > 2  # several answers to one prompt differ
    alone = choose(same[:1], np.zeros((1, 5), bool), np.array([7], np.int32), np.int32(0), numbers)
    assert alone[0] == drawn[7]  # and none depends on its neighbours


def test_greedy_and_penalty():
    seen = np.zeros(LOGITS.shape, bool)
    seen[:, [0, 4]] = True
    rows = np.zeros(2, np.int32)
    assert choose(LOGITS, seen, rows, np.int32(0), Sampling().numbers()).tolist() == [0, 4]
    assert choose(LOGITS, seen, rows, np.int32(0), Sampling(repetition_penalty=1.5).numbers()).tolist() == [1, 3]


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
