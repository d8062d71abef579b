"""Greedy tokens of the recorded cases by cached decoding, alone and in one batch; cached steps against full passes."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from conversion.cases import case_batch, case_config, read_case
from conversion.verify import jitted
from omnivinci_jax.config_json import read_json
from omnivinci_jax.generate.cache import Weights, decoding_weights, new_cache
from omnivinci_jax.generate.engine import Engine, Prompt
from omnivinci_jax.generate.programs import MEDIA
from omnivinci_jax.generate.sampling import Sampling
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import TEXT
from tests.parity.golden import CHECKPOINT, CONFIG, GOLDEN, needs_golden, params
from tests.tiny import NoEnd

pytestmark = needs_golden
CASES = sorted(path.stem for path in (GOLDEN / "cases").glob("*.npz"))
NEW = 8


@cache
def engine() -> Engine:
    return Engine(OmniVinci(CONFIG), params(), NoEnd())


@cache
def recorded(name: str) -> tuple[Prompt, np.ndarray]:
    """A case as a prompt, and its greedy tokens."""
    case = read_case(GOLDEN / "cases" / f"{name}.npz", read_json(CHECKPOINT / "config.json"))
    config = case_config(CONFIG, case)
    batch = case_batch(config, case)
    length = case.arrays["logits"].shape[1]
    x = np.asarray(jitted(OmniVinci(config), "embed")(params(), batch))[0, :length]
    is_text = batch.slot_kind[0, 0, :length] == TEXT
    tokens = np.where(is_text, batch.tokens[0, 0, :length], MEDIA).astype(np.int32)
    identity = np.where(is_text, tokens, -1 - np.arange(length) - 1000 * CASES.index(name))
    return Prompt(tokens, x[~is_text], identity), case.arrays["generated_new"][0]


def greedy(prompts: list[Prompt]) -> np.ndarray:
    turns = list(engine().tokens(prompts, Sampling(max_new_tokens=NEW)))
    return np.array([[token for turn in turns for token in turn[row]] for row in range(len(prompts))])


@pytest.mark.parametrize("name", CASES)
def test_alone(name):
    prompt, expected = recorded(name)
    np.testing.assert_array_equal(greedy([prompt]), [expected])


def test_beside_prompts_of_other_lengths_and_media():
    prompts, expected = zip(*map(recorded, CASES), strict=True)
    assert len({len(prompt) for prompt in prompts}) > 4
    np.testing.assert_array_equal(greedy(list(prompts)), expected)


@pytest.mark.parametrize("name", ["a_text", "e_video_audio"])
def test_each_cached_step_is_the_full_pass(name):
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
    # Two rows, of which the second begins three slots later: the same tokens at other slots.
    padded = np.stack([np.pad(x[0], ((0, 3), (0, 0))), np.pad(x[0], ((3, 0), (0, 0)))])
    cache_ = new_cache(CONFIG.text, 2, 1024, jnp.float32, np.array([0, 3], np.int32))
    halfway = length // 2
    first, cache_ = extend(model, weights, padded[:, :halfway], cache_)
    hidden = [np.asarray(first)]
    for slot in range(halfway, length + 3):
        step, cache_ = extend(model, weights, padded[:, slot : slot + 1], cache_)
        hidden.append(np.asarray(step))
    hidden = np.concatenate(hidden, axis=1)
    np.testing.assert_allclose(hidden[0, :length], full[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(hidden[1, 3:], full[0], rtol=0, atol=1e-5)


def extend(model: OmniVinci, weights: Weights, x: np.ndarray, past):
    return jitted(model, "extend")(weights.rest, x, weights.layers, past)
