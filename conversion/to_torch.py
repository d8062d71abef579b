"""Convert a model directory to PyTorch files.

python -m conversion.to_torch DIR DST --layout released|merged
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from conversion.command import progress, run
from conversion.layouts import Layout, file_name
from conversion.loader_files import write_loader_files
from conversion.mapping import Tensor
from conversion.source import DTYPE_NAMES
from conversion.stored_model import open_model, read_tensors
from conversion.tensor_files import TensorWriter
from omnivinci_jax.errors import UserError
from omnivinci_jax.mesh.processes import atomic_directory
from omnivinci_jax.model_dir import in_modules


class _Export(NamedTuple):
    """A tensor, and its name and type in the file."""

    tensor: Tensor
    name: str
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.tensor.shape) * self.dtype.itemsize


def to_torch(folder: Path, destination: Path, *, layout: Layout, dtype: str | None = None) -> list[str]:
    """Writes the model directory `folder` as PyTorch files to the new directory `destination`.

    Holds a few tensors in memory at a time, and leaves out modules that were initialised and never trained. `dtype`
    casts all parameters (`bfloat16`, `float16`, `float32`). Returns notes for the user.

    Raises:
        UserError: `folder` is not a model directory, its parameters do not fit its config.json or none of them is
            trained, `destination` exists.
    """
    with atomic_directory(destination, replace=False) as staged:
        part = Path(staged)
        model = open_model(folder)
        trained = [tensor for tensor in model.tensors if not in_modules(tensor.path, model.untrained)]
        if not trained:
            raise UserError(f"{folder}: no training has touched its parameters; there is nothing to export")
        folders: dict[str, list[_Export]] = {}
        for tensor in trained:
            subfolder, name = file_name(tensor.name, layout)
            export_dtype = tensor.dtype or (DTYPE_NAMES[dtype] if dtype else model.dtypes[tensor.path])
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
        notes = write_loader_files(model, part, layout)
    if model.untrained:
        notes.append(f"left out, because no training has touched them: {', '.join(model.untrained)}")
    return notes


def main(arguments: list[str], prog: str = "python -m conversion.to_torch") -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="model directory")
    parser.add_argument("destination", type=Path, help="directory to create")
    parser.add_argument("--layout", choices=get_args(Layout), required=True)
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help="cast all parameters; default: keep their types")
    options = parser.parse_args(arguments)
    notes = to_torch(options.folder, options.destination, layout=options.layout, dtype=options.dtype)
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {options.destination} ({options.layout} layout)")
    return 0


if __name__ == "__main__":
    run(main)
