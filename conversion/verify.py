"""Compares a model with recorded outputs of the reference, quantity by quantity.

python -m conversion.verify DIR CASE.npz...      DIR: a model directory, or PyTorch files in either layout
"""

import argparse
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from conversion import loading
from conversion.cases import Case, case_batch, case_config, read_case
from conversion.command import run
from omnivinci_jax import model_dir
from omnivinci_jax.config_json import read_json
from omnivinci_jax.errors import UserError
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.train.losses import token_losses, weighted_mean

TOLERANCES = {"inputs_embeds": 1e-5, "logits": 1e-4, "loss": 1e-6, "generated_new": 0.0}
# Angles of this scheme reach hundreds of radians, which the reference rounds to float32; ours are exact.
LONGEST_EMBEDS = 2e-5


class Comparison(NamedTuple):
    """The largest difference of one quantity of one case, and what is allowed."""

    case: str
    quantity: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is small enough; a NaN is not."""
        return self.difference <= self.tolerance


def load_model(folder: Path) -> tuple[OmniVinci, dict]:
    """Module and parameters of a model directory or of PyTorch files."""
    return model_dir.load_model(folder) if (folder / "params").is_dir() else loading.load_model(folder)


def compare(model: OmniVinci, params: dict, case: Case) -> Iterator[Comparison]:
    """Runs a case and compares what it recorded: decoder inputs, logits, loss, greedy tokens."""
    longest = case_config(model.config, case).video_time.scheme == "longest"
    tolerances = TOLERANCES | ({"inputs_embeds": LONGEST_EMBEDS} if longest else {})
    for name, output in outputs(model, params, case).items():
        difference = np.abs(output.astype(np.float64) - case.arrays[name]).max()
        yield Comparison(case.name, name, float(difference), tolerances[name])


def outputs(model: OmniVinci, params: dict, case: Case) -> dict[str, np.ndarray]:
    """What the model makes of a case, for each quantity of TOLERANCES that the case recorded."""
    config, recorded = case_config(model.config, case), case.arrays
    length, new = recorded["logits"].shape[1], len(recorded.get("generated_new", [[]])[0])
    batch = case_batch(config, case, free_slots=new)
    used = int((batch.segment_ids > 0).sum())
    if used != length:
        raise UserError(f"{case.name}: our layout has {used} slots and the recorded one {length}")
    # Seconds of windows and groups are in the layout already: without them cases share a compiled program.
    layout = ("audio_hop_length", "temporal_group_seconds")
    config = config.replace(**{name: getattr(model.config, name) for name in layout})
    x = jitted(OmniVinci(config, model.compute), "embed")(params, batch)
    hidden = jitted(model, "decode")(params, x, batch.positions[0], batch.segment_ids[0])
    logits = jitted(model, "logits")(params, hidden)
    made = {"inputs_embeds": x[:, :length], "logits": logits[:, :length, : config.text.vocab_size]}
    if batch.loss_weights.any():
        made["loss"] = weighted_mean(token_losses(logits, batch.targets[0]), batch.loss_weights[0])
    if new:
        made["generated_new"] = _greedy(model, params, x, length, new)
    return {name: np.asarray(array) for name, array in made.items() if name in recorded}


@cache
def jitted(model: OmniVinci, method: str) -> Callable[..., jax.Array]:
    """A method of the model, compiled: (params, *arguments) to its output."""
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args, method=method))


def _greedy(model: OmniVinci, params: dict, x: jax.Array, length: int, count: int) -> np.ndarray:
    """Greedy tokens after the first `length` decoder inputs; slots past the last token change nothing before them."""
    slots = jnp.arange(x.shape[1])[None]
    tokens = []
    for place in range(length, length + count):
        hidden = jitted(model, "decode")(params, x, slots, jnp.ones_like(slots))
        tokens.append(int(jitted(model, "logits")(params, hidden[:, place - 1]).argmax()))
        x = x.at[:, place].set(jitted(model, "embed_text")(params, jnp.array([tokens[-1]]))[0])
    return np.array([tokens])


def main(arguments: list[str]) -> int:
    """The command; 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m conversion.verify", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="model directory, or PyTorch files in either layout")
    parser.add_argument("cases", type=Path, nargs="+", help="recorded cases (.npz)")
    options = parser.parse_args(arguments)
    root = read_json(options.folder / "config.json")
    cases = [read_case(path, root) for path in options.cases]
    model, params = load_model(options.folder)
    failed = 0
    print(f"{'case':<26}{'quantity':<16}{'largest difference':>20}{'allowed':>10}")
    for case in cases:
        for result in compare(model, params, case):
            verdict = "pass" if result.passed else "FAIL"
            print(
                f"{result.case:<26}{result.quantity:<16}{result.difference:>20.2e}{result.tolerance:>10.0e}  {verdict}"
            )
            failed += not result.passed
    print(f"{failed} failed" if failed else "all passed")
    return int(failed > 0)


if __name__ == "__main__":
    run(main)
