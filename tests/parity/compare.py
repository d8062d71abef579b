"""Compares the model with the reference's recorded outputs, quantity by quantity."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.train.losses import token_losses, weighted_mean
from tests.parity.cases import Case, case_batch

TOLERANCES = {"inputs_embeds": 1e-5, "logits": 1e-4, "loss": 1e-6, "generated_new": 0.0}
# This scheme's angles reach hundreds of radians; the reference rounds them to float32, ours are exact.
LONGEST_EMBEDS = 2e-5


class Comparison(NamedTuple):
    """The largest difference of one quantity of one case, and its tolerance."""

    case: str
    quantity: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; a NaN is not."""
        return self.difference <= self.tolerance


def compare(model: OmniVinci, params: dict, case: Case) -> Iterator[Comparison]:
    """Runs a case and compares every quantity that it recorded: decoder inputs, logits, loss, greedy tokens."""
    longest = case.settings.config.video_time.scheme == "longest"
    tolerances = TOLERANCES | ({"inputs_embeds": LONGEST_EMBEDS} if longest else {})
    for name, output in outputs(model, params, case).items():
        difference = np.abs(output.astype(np.float64) - case.arrays[name]).max()
        yield Comparison(case.name, name, float(difference), tolerances[name])


def outputs(model: OmniVinci, params: dict, case: Case) -> dict[str, np.ndarray]:
    """Returns the model's outputs for a case: each quantity of TOLERANCES that the case recorded."""
    config, recorded = case.settings.config, case.arrays
    length, new = recorded["logits"].shape[1], len(recorded.get("generated_new", [[]])[0])
    batch = case_batch(case, free_slots=new)
    used = int((batch.segment_ids > 0).sum())
    assert used == length, f"{case.name}: our row has {used} slots and the recorded one {length}"
    # The layout already contains the window and group lengths: reset them so that cases share a compiled program.
    layout = ("audio_hop_length", "temporal_group_seconds")
    config = config.replace(**{name: getattr(model.config, name) for name in layout})
    x = jitted(OmniVinci(config, model.compute), "embed")(params, batch)
    hidden = jitted(model, "decode")(params, x, batch.positions[0], batch.segment_ids[0])
    logits = jitted(model, "logits")(params, hidden)
    results = {"inputs_embeds": x[:, :length], "logits": logits[:, :length, : config.text.vocab_size]}
    if batch.loss_weights.any():
        results["loss"] = weighted_mean(
            token_losses(logits, jnp.asarray(batch.targets[0])), jnp.asarray(batch.loss_weights[0])
        )
    if new:
        results["generated_new"] = _greedy(model, params, x, length, new)
    return {name: np.asarray(array) for name, array in results.items() if name in recorded}


@cache
def jitted(model: OmniVinci, method: str) -> Callable[..., jax.Array]:
    """Compiles a method of the model, called as (params, *arguments)."""
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args, method=method))


def _greedy(model: OmniVinci, params: dict, x: jax.Array, length: int, count: int) -> np.ndarray:
    """Generates greedy tokens after the first `length` decoder inputs; later slots do not affect earlier ones."""
    slots = jnp.arange(x.shape[1])[None]
    tokens = []
    for index in range(length, length + count):
        hidden = jitted(model, "decode")(params, x, slots, jnp.ones_like(slots))
        tokens.append(int(jitted(model, "logits")(params, hidden[:, index - 1]).argmax()))
        x = x.at[:, index].set(jitted(model, "embed_text")(params, jnp.array([tokens[-1]]))[0])
    return np.array([tokens])
