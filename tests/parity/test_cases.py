"""The complete model against recorded cases: decoder inputs, logits, loss, greedy tokens, and bfloat16."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from omnivinci_jax.config_json import from_json, read_config, read_json
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.omnivinci import OmniVinci
from tests.parity.cases import CASES, read_case
from tests.parity.compare import compare, outputs
from tests.parity.golden import CHECKPOINT, CONFIG, GOLDEN, needs_golden, params

pytestmark = needs_golden


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    case = read_case(name)
    results = list(compare(OmniVinci(CONFIG), params(), case))
    labelled = {"loss"} if "in.labels" in case.arrays else set()
    assert {result.quantity for result in results} == {"inputs_embeds", "logits", "generated_new"} | labelled
    for result in results:
        assert result.passed, result


def test_configuration_of_the_checkpoint():
    """Both are the released model, though their model_type is the successor's, which only the merged layout obeys."""
    merged = from_json(read_json(CHECKPOINT / "config.json") | {"model_type": "omnivinci"})
    released = CONFIG.replace(frame_sampling="released")  # the recorded cases contain their frames
    assert merged == released == read_config(GOLDEN / "checkpoint_released" / "config.json")
    assert read_config(CHECKPOINT / "config.json").video_time.scheme == "harmonic_shortest"


@pytest.mark.parametrize("name", ["a_text", "b_image_s2_2x3", "c_audio_2chunks", "e_video_audio"])
def test_bfloat16_stays_close_to_float32(name):
    case = read_case(name)
    made = outputs(OmniVinci(CONFIG, Compute(jnp.bfloat16)), params(), case)
    expected, logits = (x.astype(np.float64) for x in (case.arrays["logits"], made["logits"]))
    exact, rounded = log_softmax(expected, -1), log_softmax(logits, -1)
    assert (np.exp(exact) * (exact - rounded)).sum(-1).mean() <= 1e-3
    assert made["inputs_embeds"].dtype == jnp.bfloat16 and np.abs(logits - expected).max() > 1e-3
