"""Checkpoints to convert: small ones of random bits, and what is in a model directory."""

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from benchmarks.convert import different, random_checkpoint
from conversion.tensor_files import DTYPES
from omnivinci_jax.config import OmniVinciConfig
from tests.tiny import tiny_config

__all__ = ["different", "make", "parameters"]


def make(folder: Path, layout: str = "merged", dtype: str = "BF16", config: OmniVinciConfig | None = None) -> Path:
    """A checkpoint of the tiny model in `folder`."""
    random_checkpoint(config or tiny_config(), folder, layout, DTYPES[dtype])
    return folder


def parameters(model: Path) -> dict[str, np.ndarray]:
    """What Orbax reads from a model directory, by path."""
    with ocp.StandardCheckpointer() as checkpointer:
        return {
            path: np.asarray(leaf)
            for path, leaf in flatten_dict(checkpointer.restore(model / "params"), sep="/").items()
        }
