"""Reads a model directory as PyTorch tensors, one at a time."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from conversion.compressed import quantized_tensors
from conversion.layouts import UNPUBLISHED
from conversion.mapping import SAME, Tensor, tensors, unpublished_leaves
from conversion.tensor_files import DTYPES
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.config_json import from_json, read_json, untrained_modules
from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.leaves import StoredLeaves, contiguous
from omnivinci_jax.model_dir import check_shapes, in_modules, stored_params
from omnivinci_jax.models.initialization import abstract_params, parameter_shapes
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.quantized import Scheme, as_dicts, is_quantized


class StoredModel(NamedTuple):
    """The header of a model directory.

    root: config.json in the merged form.
    untrained: modules that were initialised and never trained.
    tensors: every tensor by merged name; unpublished ones start with `omnivinci_jax.`.
    dtypes: stored type of each leaf, by path.
    schemes: of the quantized kernels, by path.
    """

    folder: Path
    root: dict[str, Any]
    config: OmniVinciConfig
    tensors: list[Tensor]
    dtypes: dict[str, np.dtype]
    untrained: tuple[str, ...]
    schemes: dict[str, Scheme]


def open_model(folder: Path) -> StoredModel:
    """Reads the header of a model directory.

    Raises:
        UserError: `folder` is not a model directory, or its parameters do not fit its config.json.
        ConfigError: an untrained module that the model does not have.
    """
    root = read_json(folder / "config.json")
    config = from_json(root, str(folder / "config.json"))
    stored = stored_params(folder)
    model = OmniVinci(config)
    check_shapes(stored, abstract_params(model.config), folder / "params")
    weights = cast("dict[str, Any]", flatten_dict(stored, sep="/"))
    quantized = {path: leaf for path, leaf in weights.items() if is_quantized(leaf)}
    leaves = cast("dict[str, jax.ShapeDtypeStruct]", flatten_dict(as_dicts(stored), sep="/"))
    dtypes = {path: np.dtype(leaf.dtype) for path, leaf in leaves.items()}
    floats = {path: dtype for path, dtype in dtypes.items() if path.rpartition("/")[0] not in quantized}
    if unknown := [path for path, dtype in floats.items() if dtype not in DTYPES.values()]:
        raise UserError(f"{folder / 'params'}: {unknown[0]} has type {dtypes[unknown[0]]}; it must be floating point")
    shapes = parameter_shapes(model.config)
    all_tensors = []
    for tensor in tensors(config, shapes):
        leaf = quantized.get(tensor.path)
        all_tensors += quantized_tensors(tensor, leaf.scheme, leaf.scales.shape[-1]) if leaf else [tensor]
    for name, path in unpublished_leaves(config, shapes).items():
        if path in quantized:
            raise UserError(f"{folder / 'params'}: {path} is quantized, but no published layer; quantize without it")
        all_tensors.append(Tensor(f"{UNPUBLISHED}.{name}", shapes[path], path, None, SAME))
    untrained = untrained_modules(root)
    for module in untrained:
        if not any(in_modules(path, [module]) for path in shapes):
            raise ConfigError(f"{folder / 'config.json'}: {UNPUBLISHED}.untrained: {module!r}: no such module")
    schemes = {path: leaf.scheme for path, leaf in quantized.items()}
    return StoredModel(folder, root, config, all_tensors, dtypes, untrained, schemes)


def read_tensors(model: StoredModel, wanted: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Yields each tensor as a contiguous array in PyTorch's layout, with its stored type.

    A thread reads the next tensor while the caller uses this one.
    """
    arrays = _read(model.folder / "params", wanted)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, arrays, None)
        while (array := pending.result()) is not None:
            pending = pool.submit(next, arrays, None)
            yield array


def _read(params: Path, wanted: Iterable[Tensor]) -> Iterator[np.ndarray]:
    leaves = StoredLeaves(params)
    for path, slices in groupby(wanted, key=lambda tensor: tensor.path):
        leaf = leaves.open(path)
        for tensor in slices:
            yield contiguous(tensor.transform.to_torch(leaf.read(tensor.index), tensor.shape))
