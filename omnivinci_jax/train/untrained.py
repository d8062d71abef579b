"""The modules that no training has touched: their parameters were drawn at random, and no gradient has reached them.

A model directory lists them in its config.json, so that exports leave them out.
"""

from collections.abc import Iterable
from functools import reduce
from typing import Any, cast

import jax
import jax.numpy as jnp
from etils import epath
from flax import traverse_util

from omnivinci_jax.config_json import read_json, untrained_modules
from omnivinci_jax.model_dir import in_modules
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.settings import TrainConfig
from omnivinci_jax.train.start import only_modules
from omnivinci_jax.train.state import TrainState


def initially_untrained(config: TrainConfig, start: epath.Path | None) -> tuple[str, ...]:
    """Returns the untrained modules at the first step: those drawn at random, and those that `start` lists.

    Args:
        config: of the run.
        start: the model directory that the run starts from, from `find_start`.
    """
    modules = abstract_params(config.model)
    loaded = only_modules(modules, config.start_modules) if start else {}
    listed = untrained_modules(read_json(start / "config.json")) if start else ()
    return (*(name for name in modules if name not in loaded), *(name for name in listed if in_modules(name, loaded)))


def without_trained(modules: Iterable[str], state: TrainState) -> tuple[str, ...]:
    """Returns those of `modules` that no gradient has reached: all their moments in the optimizer are zero."""
    moments: dict[str, list[jax.Array]] = {module: [] for module in modules}
    trainable = traverse_util.flatten_dict(state.trainable, sep="/")
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]:
        parameter = _parameter_of(path, trainable)
        for module in moments:
            if parameter and in_modules(parameter, [module]):
                moments[module].append(leaf)
    return _all_zero(moments)


def without_adapted(modules: Iterable[str], adapters: dict) -> tuple[str, ...]:
    """Returns those of `modules` that no adapter changes: their adapters have a factor `lora_b` of zeros, or none."""
    leaves = cast("dict[str, jax.Array]", traverse_util.flatten_dict(adapters, sep="/"))
    factors = {path: leaf for path, leaf in leaves.items() if path.endswith("/lora_b")}
    return _all_zero(
        {module: [leaf for path, leaf in factors.items() if in_modules(path, [module])] for module in modules}
    )


def _parameter_of(path: tuple[Any, ...], trainable: dict[str, Any]) -> str | None:
    """Returns the parameter that an array of the optimizer belongs to: its path ends with the parameter's."""
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    ends = ("/".join(names[start:]) for start in range(len(names)))
    return next((end for end in ends if end in trainable), None)


def _all_zero(arrays: dict[str, list[jax.Array]]) -> tuple[str, ...]:
    """Returns the names whose arrays are all zero; a name without arrays is one of them."""

    @jax.jit
    def any_nonzero(arrays: dict[str, list[jax.Array]]) -> dict[str, jax.Array]:
        return {
            name: reduce(jnp.logical_or, (jnp.any(leaf != 0) for leaf in leaves), jnp.array(False))
            for name, leaves in arrays.items()
        }

    found = any_nonzero(arrays)
    return tuple(name for name in arrays if not found[name])
