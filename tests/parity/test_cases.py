"""The whole model against the recorded cases: decoder inputs, logits, loss, greedy tokens, and bfloat16."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from conversion.cases import case_batch, case_config, read_case
from conversion.verify import compare, jitted
from omnivinci_jax.config_json import read_config, read_json
from omnivinci_jax.models.omnivinci import OmniVinci
from tests.parity.golden import CHECKPOINT, CONFIG, GOLDEN, needs_golden, params

pytestmark = needs_golden
CASES = sorted(path.stem for path in (GOLDEN / "cases").glob("*.npz"))


def recorded(name: str):
    return read_case(GOLDEN / "cases" / f"{name}.npz", read_json(CHECKPOINT / "config.json"))


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    results = list(compare(OmniVinci(CONFIG), params(), recorded(name)))
    assert {"inputs_embeds", "logits", "generated_new"} <= {result.quantity for result in results}
    assert ("loss" in {result.quantity for result in results}) == ("labels" in name or name == "a_text")
    for result in results:
        assert result.passed, result


def test_configuration_of_the_checkpoint():
    expected = read_config(CHECKPOINT / "config.json")
    assert expected == CONFIG == read_config(GOLDEN / "checkpoint_released" / "config.json")


@pytest.mark.parametrize("name", ["a_text", "b_image_s2_2x3", "c_audio_2chunks", "e_video_audio", "v_pool_multi_e"])
def test_bfloat16_stays_close_to_float32(name):
    case = recorded(name)
    config = case_config(CONFIG, case)
    batch = case_batch(config, case)
    model = OmniVinci(config, dtype=jnp.bfloat16)
    x = jitted(model, "embed")(params(), batch)
    hidden = jitted(model, "decode")(params(), x, batch.positions[0], batch.segment_ids[0])
    logits = np.asarray(jitted(model, "logits")(params(), hidden), np.float64)[..., : config.text.vocab_size]
    exact, rounded = log_softmax(case.arrays["logits"].astype(np.float64), -1), log_softmax(logits, -1)
    divergence = (np.exp(exact) * (exact - rounded)).sum(-1)
    assert x.dtype == jnp.bfloat16
    assert divergence.mean() <= 1e-3
    assert np.abs(logits - case.arrays["logits"]).max() > 1e-3  # it was computed in bfloat16
