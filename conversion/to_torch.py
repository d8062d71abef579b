"""Convert a model directory to PyTorch files.

python -m conversion.to_torch DIR DST --layout released|merged
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from conversion.command import progress, run
from conversion.layouts import Layout, file_name
from conversion.mapping import Tensor
from conversion.source import DTYPE_NAMES
from conversion.stored_model import open_model, read_tensors
from conversion.tensor_files import TensorWriter
from omnivinci_jax.config_json import to_json, to_released
from omnivinci_jax.mesh.processes import atomic_directory
from omnivinci_jax.sequence.tokenizer import FILES, Tokenizer


class _Export(NamedTuple):
    """A tensor, and its name and type in the file."""

    tensor: Tensor
    name: str
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.tensor.shape) * self.dtype.itemsize


def to_torch(folder: Path, destination: Path, *, layout: Layout, dtype: str | None = None) -> None:
    """Writes the model directory `folder` as safetensors in `layout` to the new directory `destination`.

    Holds a few tensors in memory at a time. `dtype` casts all parameters (`bfloat16`, `float16`, `float32`).

    Raises:
        UserError: `folder` is not a model directory, its parameters do not fit its config.json, `destination` exists.
    """
    with atomic_directory(destination, replace=False) as staged:
        part = Path(staged)
        model = open_model(folder)
        folders: dict[str, list[_Export]] = {}
        for tensor in model.tensors:
            subfolder, name = file_name(tensor.name, layout)
            export_dtype = DTYPE_NAMES[dtype] if dtype else model.dtypes[tensor.path]
            folders.setdefault(subfolder, []).append(_Export(tensor, name, export_dtype))
        total = sum(export.nbytes for exports in folders.values() for export in exports)
        with progress(total, "to_torch") as bar:
            for subfolder, exports in folders.items():
                writer = TensorWriter(part / subfolder, [(e.name, e.tensor.shape, e.dtype) for e in exports])
                arrays = read_tensors(model, (export.tensor for export in exports))
                for export, array in zip(exports, arrays, strict=True):
                    writer.write(export.name, array.astype(export.dtype, copy=False))
                    bar.update(export.nbytes)
                writer.close()
        _write_metadata(folder, part, to_json(model.config, model.root), layout)


def _write_metadata(folder: Path, part: Path, root: dict[str, Any], layout: Layout) -> None:
    """Writes the layout's config.json, and the tokenizer's files where PyTorch code looks for them."""
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


def main(arguments: list[str], prog: str = "python -m conversion.to_torch") -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="model directory")
    parser.add_argument("destination", type=Path, help="directory to create")
    parser.add_argument("--layout", choices=get_args(Layout), required=True)
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help="cast all parameters; default: keep their types")
    options = parser.parse_args(arguments)
    to_torch(options.folder, options.destination, layout=options.layout, dtype=options.dtype)
    print(f"wrote {options.destination} ({options.layout} layout)")
    return 0


if __name__ == "__main__":
    run(main)
