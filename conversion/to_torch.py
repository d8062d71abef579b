"""A model directory to PyTorch files.

python -m conversion.to_torch DIR DST --layout released|merged
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from flax.traverse_util import flatten_dict

from conversion.command import new_directory, progress, run
from conversion.layouts import OURS, Layout, file_name
from conversion.leaves import StoredLeaf, contiguous
from conversion.mapping import SAME, Tensor, ours, tensors
from conversion.source import DTYPE_NAMES
from conversion.tensor_files import TensorWriter
from omnivinci_jax.config_json import from_json, read_json, to_json, to_released
from omnivinci_jax.errors import UserError
from omnivinci_jax.model_dir import check_shapes, stored_params
from omnivinci_jax.models.initialization import abstract_params
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.tokenizer import FILES, Tokenizer


class _Export(NamedTuple):
    """A tensor, its type, and the name it gets in its folder."""

    tensor: Tensor
    name: str
    dtype: np.dtype


def to_torch(folder: Path, destination: Path, *, layout: Layout, dtype: str | None = None) -> None:
    """Writes the model directory `folder` as safetensors in `layout` to the new directory `destination`.

    Memory holds a few tensors at a time. `dtype` casts all parameters (`bfloat16`, `float16`, `float32`).

    Raises:
        UserError: `folder` is no model directory, its parameters do not fit its config.json, `destination` exists.
    """
    with new_directory(destination) as part:
        root = read_json(folder / "config.json")
        config = from_json(root, str(folder / "config.json"))
        stored = stored_params(folder)
        expected = abstract_params(OmniVinci(config))
        check_shapes(stored, expected, folder / "params")
        types = {path: np.dtype(leaf.dtype) for path, leaf in flatten_dict(stored, sep="/").items()}
        if unknown := [path for path, kind in types.items() if kind not in DTYPE_NAMES.values()]:
            raise UserError(
                f"{folder / 'params'}: {unknown[0]} is of type {types[unknown[0]]}; it must be floating point"
            )
        shapes = {path: leaf.shape for path, leaf in flatten_dict(expected, sep="/").items()}
        everything = [*tensors(config, shapes)]
        everything += [Tensor(f"{OURS}.{name}", shapes[p], p, None, SAME) for name, p in ours(config, shapes).items()]
        folders: dict[str, list[_Export]] = {}
        for tensor in everything:
            where, name = file_name(tensor.name, layout)
            kind = DTYPE_NAMES[dtype] if dtype else types[tensor.path]
            folders.setdefault(where, []).append(_Export(tensor, name, kind))
        total = sum(_bytes(export) for exports in folders.values() for export in exports)
        with progress(total, "to_torch") as bar:
            for where, exports in folders.items():
                writer = TensorWriter(part / where, [(e.name, e.tensor.shape, e.dtype) for e in exports])
                for export, array in zip(exports, _ahead(_arrays(folder, exports)), strict=True):
                    writer.write(export.name, array)
                    bar.update(array.nbytes)
                writer.close()
        _write_rest(folder, part, to_json(config, root), layout)


def _bytes(export: _Export) -> int:
    return int(np.prod(export.tensor.shape)) * export.dtype.itemsize


def _arrays(folder: Path, exports: list[_Export]) -> Iterator[np.ndarray]:
    path, leaf = None, None
    metadata = json.loads((folder / "params" / "_METADATA").read_text())
    ocdbt, zarr3 = metadata["use_ocdbt"], metadata["use_zarr3"]
    for tensor, _, dtype in exports:
        if tensor.path != path:
            path, leaf = tensor.path, StoredLeaf(folder / "params", tensor.path, ocdbt, zarr3)
        array = tensor.transform.to_torch(leaf.read(tensor.index), tensor.shape)
        yield contiguous(array).astype(dtype, copy=False)


def _ahead(arrays: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same arrays, each made in a thread while the one before is written."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, arrays, None)
        while (array := waiting.result()) is not None:
            waiting = pool.submit(next, arrays, None)
            yield array


def _write_rest(folder: Path, part: Path, root: dict[str, Any], layout: Layout) -> None:
    """config.json of the layout, and the tokenizer's files where PyTorch code looks for them."""
    root = {**root, "architectures": root.get("architectures", ["AudioVisualFlamingoForConditionalGeneration"])}
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer(folder)
        root["media_token_ids"] = tokenizer.media_ids
        root["encoder_text_token_ids"] = {"\n": [tokenizer.newline_id]}
    files = {"config.json": root} if layout == "merged" else to_released(root)
    for name, values in files.items():
        (part / name).write_text(json.dumps(values, indent=2) + "\n")
    for name in FILES:
        if (folder / name).is_file():
            shutil.copy(folder / name, part / ("llm" if layout == "released" else "") / name)


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m conversion.to_torch", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="model directory")
    parser.add_argument("destination", type=Path, help="directory to make")
    parser.add_argument("--layout", choices=get_args(Layout), required=True)
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help="cast all parameters; they are kept as they are otherwise")
    options = parser.parse_args(arguments)
    to_torch(options.folder, options.destination, layout=options.layout, dtype=options.dtype)
    print(f"wrote {options.destination} ({options.layout} layout)")


if __name__ == "__main__":
    run(main)
