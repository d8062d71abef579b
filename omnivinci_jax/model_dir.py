"""Model directories: config.json, the tokenizer's files, params/ (Orbax)."""

import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import linen as nn

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.config_json import read_config, write_config
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.errors import UserError
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.assemble import empty_group
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.tokenizer import Tokenizer

_SMALLEST = Capacity(rows=1, slots=2, tiles=1, windows=1, clips=1)


class LoadedModel(NamedTuple):
    """What `load` returns: the Flax module, its parameters as a plain dict, and the way from files to rows."""

    model: OmniVinci
    params: dict
    processor: Processor


def load(folder: str | Path, dtype: jnp.dtype = jnp.float32) -> LoadedModel:
    """Loads a model directory; `dtype` is that of activations. Raises UserError for what is missing."""
    folder = Path(folder)
    config = read_config(folder / "config.json")
    tokenizer = Tokenizer(folder)
    if not (folder / "params").is_dir():
        raise UserError(f"{folder / 'params'}: no such folder; the model has no parameters")
    model = OmniVinci(config, dtype=dtype)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract_params(model)
    )
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore((folder / "params").absolute(), shapes)
    return LoadedModel(model, params, Processor(config, tokenizer))


def save(folder: str | Path, config: OmniVinciConfig, params: dict, tokenizer: Tokenizer) -> None:
    """Writes a model directory under a temporary name and moves it when whole; replaces one that is there."""
    folder = Path(folder).absolute()
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    write_config(config, part / "config.json")
    for file in tokenizer.path.parent.iterdir():
        if file.is_file() and file.name != "config.json":
            shutil.copy(file, part)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(part / "params", params)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def init_batch(config: OmniVinciConfig) -> object:
    """The smallest batch, to initialise parameters with."""
    return jax.tree.map(lambda array: array[None], empty_group(config, _SMALLEST))


def abstract_params(model: OmniVinci) -> dict:
    """Shapes and dtypes of the parameters."""
    batch = init_batch(model.config)
    # Unboxed inside: under a mesh it constrains shardings, which only traced arrays can take.
    return jax.eval_shape(lambda key: nn.meta.unbox(model.init(key, batch)["params"]), jax.random.key(0))
