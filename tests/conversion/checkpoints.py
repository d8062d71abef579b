"""Small checkpoints of random bits to convert, and the parameters of a model directory."""

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from benchmarks.convert import different, random_checkpoint
from conversion.tensor_files import DTYPES, INDEX, SINGLE, TensorWriter, stored_tensors
from conversion.to_torch import to_torch
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.model_dir import save
from tests.tiny import random_params, tiny_config, tiny_tokenizer

__all__ = ["different", "make", "make_trained", "parameters", "rewrite"]


def make(folder: Path, layout: str = "merged", dtype: str = "BF16", config: OmniVinciConfig | None = None) -> Path:
    """Writes a checkpoint of the tiny model to `folder`."""
    random_checkpoint(config or tiny_config(), folder, layout, DTYPES[dtype])
    return folder


def make_trained(folder: Path) -> Path:
    """Writes a merged checkpoint of the tiny model with its unpublished modules: converting it initialises nothing."""
    config = tiny_config()
    save(folder / "model", config, random_params(config), tiny_tokenizer())
    to_torch(folder / "model", folder / "merged", layout="merged")
    return folder / "merged"


def parameters(model: Path) -> dict[str, np.ndarray]:
    """Reads a model directory's parameters with Orbax, by path."""
    with ocp.StandardCheckpointer() as checkpointer:
        return {
            path: np.asarray(leaf)
            for path, leaf in flatten_dict(checkpointer.restore(model / "params"), sep="/").items()
        }


def rewrite(folder: Path, change, limit: int = 10**9) -> None:
    """Applies `change` to the dict of a folder's tensors and writes them back."""
    tensors = {name: tensor.read() for name, tensor in stored_tensors(folder).items()}
    change(tensors)
    writer = TensorWriter(folder, [(name, x.shape, x.dtype) for name, x in tensors.items()], limit)
    for name, array in tensors.items():
        writer.write(name, array)
    writer.close()
    if (folder / INDEX).is_file():
        (folder / SINGLE).unlink()
