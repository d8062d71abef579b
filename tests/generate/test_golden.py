"""Greedy tokens of the recorded cases by cached decoding, alone and in one batch; cached steps against full passes."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from omnivinci_jax.generate.decode_state import new_state
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.request import MEDIA, Prompt, Request, Sampling
from omnivinci_jax.generate.weights import Weights, decoding_weights
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import TEXT
from tests.parity.cases import CASES, case_batch, read_case
from tests.parity.compare import jitted
from tests.parity.golden import CONFIG, needs_golden, params
from tests.tiny import NoEnd

pytestmark = needs_golden
NEW = 8


@cache
def engine() -> Engine:
    return Engine(OmniVinci(CONFIG), params(), NoEnd())


@cache
def recorded(name: str) -> tuple[Prompt, np.ndarray]:
    """Returns a case as a prompt, and its greedy tokens."""
    case = read_case(name)
    batch = case_batch(case)
    length = case.arrays["logits"].shape[1]
    x = np.asarray(jitted(OmniVinci(case.settings.config), "embed")(params(), batch))[0, :length]
    is_text = batch.slot_kind[0, 0, :length] == TEXT
    tokens = np.where(is_text, batch.tokens[0, 0, :length], MEDIA).astype(np.int32)
    identity = np.where(is_text, tokens, -1 - np.arange(length) - 1000 * CASES.index(name))
    return Prompt(tokens, x[~is_text], identity), case.arrays["generated_new"][0]


def greedy(prompts: list[Prompt]) -> np.ndarray:
    requests = [Request(prompt, Sampling(max_new_tokens=NEW)) for prompt in prompts]
    for _ in engine().run(requests):
        pass
    return np.array([request.tokens for request in requests])


@pytest.mark.parametrize("name", CASES)
def test_alone(name):
    prompt, expected = recorded(name)
    np.testing.assert_array_equal(greedy([prompt]), [expected])


def test_beside_prompts_of_other_lengths_and_media():
    prompts, expected = zip(*map(recorded, CASES), strict=True)
    assert len({len(prompt) for prompt in prompts}) > 4
    np.testing.assert_array_equal(greedy(list(prompts)), expected)


@pytest.mark.parametrize("name", ["a_text", "e_video_audio"])
def test_cached_steps_match_the_full_pass(name):
    prompt, _ = recorded(name)
    model = OmniVinci(CONFIG)
    weights = decoding_weights(model, params())
    length = len(prompt)
    x = np.zeros((1, length, CONFIG.text.hidden_size), np.float32)
    x[0, prompt.tokens == MEDIA] = prompt.media
    embedded = jitted(model, "embed_text")(params(), jnp.maximum(prompt.tokens, 0))
    x[0, prompt.tokens != MEDIA] = embedded[prompt.tokens != MEDIA]
    slots = np.arange(length)[None]
    full = jitted(model, "decode")(params(), x, slots, np.ones_like(slots))
    # Two rows; the second is three slots behind the first.
    cache_, halfway = new_state(CONFIG.text, 2, 1024, jnp.float32).layers, length // 2
    first, cache_ = extend(model, weights, np.repeat(x[:, :halfway], 2, axis=0), cache_, np.zeros(2, np.int32))
    lengths, found = np.array([halfway, halfway - 3], np.int32), ([first[0]], [first[1, : halfway - 3]])
    while lengths[0] < length:
        slots = np.stack([x[0, lengths[:1]], x[0, lengths[1:]]])
        step, cache_ = extend(model, weights, slots, cache_, lengths)
        lengths = lengths + 1
        for row, hidden in zip(found, step, strict=True):
            row.append(hidden)
    first, second = map(np.concatenate, found)
    np.testing.assert_allclose(first, full[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(second, full[0, : length - 3], rtol=0, atol=1e-5)
    # The remaining slots of one row of the batch, all at once.
    again, _ = extend(model, weights, x[:, halfway:], cache_, np.array([halfway], np.int32), np.array([1], np.int32))
    np.testing.assert_allclose(again[0], full[0, halfway:], rtol=0, atol=1e-5)


def extend(model: OmniVinci, weights: Weights, x: np.ndarray, cache_, *lengths_and_rows: np.ndarray):
    hidden, cache_ = jitted(model, "extend")(weights.rest, x, weights.layers, cache_, *lengths_and_rows)
    return np.asarray(hidden), cache_
