"""A PyTorch checkpoint in memory, without a model directory between."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.typing import DTypeLike

from conversion.leaves import LazyLeaf
from conversion.source import open_source
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.errors import UserError
from omnivinci_jax.generate.assistant import Assistant
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.tokenizer import Tokenizer


def load(folder: Path, dtype: DTypeLike | None = None) -> Assistant:
    """See `conversion.load`."""
    source = open_source(folder)
    if source.tokenizer is None:
        raise UserError(f"{folder}: there is no tokenizer; copy tokenizer.json there")
    tokenizer = Tokenizer(source.tokenizer.folder)
    model, params = load_model(folder, dtype)
    return Assistant(model, params, Processor(source.config, tokenizer))


def load_model(folder: Path, dtype: DTypeLike | None = None) -> tuple[OmniVinci, dict]:
    """The module and its parameters, for those who bring token ids: what `load` does without the tokenizer."""
    source = open_source(folder)
    params = {path: _array(leaf) for path, leaf in source.leaves.items()}
    return OmniVinci(source.config, Compute(dtype=dtype or jnp.float32)), unflatten_dict(params, sep="/")


def _array(leaf: LazyLeaf) -> jax.Array:
    whole = np.empty(leaf.shape, leaf.dtype)
    for index, piece in leaf.pieces():
        whole[... if index is None else index] = piece
    return jnp.asarray(whole)
