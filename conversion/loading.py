"""Loads a PyTorch checkpoint directly, without a model directory in between."""

from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from conversion.source import open_source
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.errors import UserError
from omnivinci_jax.generate.assistant import Assistant
from omnivinci_jax.leaves import LazyLeaf
from omnivinci_jax.model_dir import quantized_sharding, shardings_of
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.quantized import from_dicts
from omnivinci_jax.sequence.tokenizer import Tokenizer


def load(folder: Path, dtype: DTypeLike | None = None, mesh: Mesh | None = None) -> Assistant:
    """See `conversion.load`."""
    source = open_source(folder)
    if source.tokenizer is None or not isinstance(source.tokenizer.source, Path):
        raise UserError(f"{folder}: no tokenizer; copy tokenizer.json there")
    tokenizer = Tokenizer(source.tokenizer.source)
    model, params = load_model(folder, dtype, mesh)
    return Assistant(model, params, Processor(source.config, tokenizer))


def load_model(folder: Path, dtype: DTypeLike | None = None, mesh: Mesh | None = None) -> tuple[OmniVinci, dict]:
    """Returns the module and its parameters, without a tokenizer, for callers that have token ids."""
    source = open_source(folder)
    model = OmniVinci(source.config, Compute(dtype=dtype or jnp.float32))
    shardings = cast("dict[str, Sharding]", flatten_dict(shardings_of(model, mesh), sep="/"))

    def sharding(path: str) -> Sharding:
        kernel, _, name = path.rpartition("/")
        return shardings[path] if path in shardings else getattr(quantized_sharding(shardings[kernel]), name)

    params = {path: jax.device_put(_array(leaf), sharding(path)) for path, leaf in source.leaves.items()}
    return model, from_dicts(unflatten_dict(params, sep="/"))


def _array(leaf: LazyLeaf) -> np.ndarray:
    whole = np.empty(leaf.shape, leaf.dtype)
    for index, piece in leaf.pieces():
        whole[... if index is None else index] = piece
    return whole
