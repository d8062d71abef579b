"""Compare a model directory with PyTorch files: configurations and every tensor.

python -m conversion.verify MODEL_DIR TORCH_DIR      TORCH_DIR: a checkpoint in the released or merged layout
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conversion.command import progress, run
from conversion.layouts import UNPUBLISHED, drop_tied_head, read_layout
from conversion.stored_model import StoredModel, open_model, read_tensors
from conversion.tensor_files import StoredTensor
from omnivinci_jax.config_json import read_config
from omnivinci_jax.model_dir import in_modules
from omnivinci_jax.settings import to_mapping

_BLOCK = 2**22  # values compared at once


@dataclass
class Report:
    """Result of `verify`.

    differences: one line each; empty if both sides are the same model.
    notes: for the user; not differences.
    tensors: number of tensors compared.
    """

    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tensors: int = 0


def verify(model_dir: Path, torch_dir: Path) -> Report:
    """Compares a model directory with PyTorch files in either layout; holds a few tensors in memory at a time.

    Tensors of the same type must agree bit for bit. Tensors of different types must agree after one side is cast to the
    other's type, and a note says so. Vocabulary padding is not compared, because PyTorch files do not have it.

    Raises:
        UserError: one of the directories is missing, damaged or unsupported.
    """
    model = open_model(model_dir)
    found = read_layout(torch_dir, model.untrained)
    if model.config.text.tie_word_embeddings:
        drop_tied_head(found)
    report = Report()
    ours = to_mapping(model.config)
    theirs = to_mapping(read_config(torch_dir / "config.json"))
    for key, value, other in _different_fields(ours, theirs, "config"):
        report.differences.append(f"{key}: {value} in {model_dir}, {other} in {torch_dir}")
    _compare_tensors(model, found, torch_dir, report)
    return report


def _different_fields(ours: Any, theirs: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in {**ours, **theirs}:
            yield from _different_fields(ours.get(name), theirs.get(name), f"{key}.{name}")
    elif ours != theirs:
        yield key, ours, theirs


def _compare_tensors(model: StoredModel, found: dict[str, StoredTensor], torch_dir: Path, report: Report) -> None:
    expected = {tensor.name: tensor for tensor in model.tensors}
    for module in model.untrained:
        own = [name for name, tensor in expected.items() if in_modules(tensor.path, [module])]
        if not any(name in found for name in own):
            report.notes.append(f"{torch_dir} has no {module}, which no training has touched; not compared")
            expected = {name: tensor for name, tensor in expected.items() if name not in own}
    unpublished = [name for name in expected if name.startswith(f"{UNPUBLISHED}.")]
    if not any(name.startswith(f"{UNPUBLISHED}.") for name in found) and unpublished:
        modules = sorted({expected.pop(name).path.split("/")[0] for name in unpublished})
        report.notes.append(
            f"{torch_dir} has only published tensors; not compared: {len(unpublished)} parameters of "
            f"{', '.join(modules)}"
        )
    shared = []
    for name, tensor in expected.items():
        if name not in found:
            report.differences.append(f"{name}: only in {model.folder}")
        elif tensor.shape != found[name].shape:
            report.differences.append(
                f"{name}: shape {tensor.shape} in {model.folder}, {found[name].shape} in {torch_dir}"
            )
        else:
            shared.append(tensor)
    report.differences += [f"{name}: only in {torch_dir}" for name in found if name not in expected]
    report.tensors = len(shared)

    casts: Counter[str] = Counter()
    total = sum(math.prod(tensor.shape) * model.dtypes[tensor.path].itemsize for tensor in shared)
    with progress(total, "verify") as bar:
        for tensor, ours in zip(shared, read_tensors(model, shared), strict=True):
            theirs = found[tensor.name].read()
            types = f"{ours.dtype} in {model.folder}, {theirs.dtype} in {torch_dir}"
            if not _agree(ours, theirs):
                values = f"shape {tensor.shape}, {_describe_difference(ours, theirs)}"
                report.differences.append(
                    f"{tensor.name}: {values}" + (f" ({types})" if ours.dtype != theirs.dtype else "")
                )
            elif ours.dtype != theirs.dtype:
                casts[types] += 1
            bar.update(ours.nbytes)
    report.notes += [f"{count} tensors agree after a cast: {types}" for types, count in casts.items()]


def _blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _BLOCK):
        yield tuple(array[start : start + _BLOCK] for array in flat)


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == b.dtype:
        return _same_bits(a, b)
    return _same_bits(a, b, cast_to=a.dtype) or _same_bits(a, b, cast_to=b.dtype)


def _same_bits(a: np.ndarray, b: np.ndarray, cast_to: np.dtype | None = None) -> bool:
    dtype = cast_to or a.dtype
    bits = np.dtype(f"u{dtype.itemsize}")
    return all(
        np.array_equal(x.astype(dtype, copy=False).view(bits), y.astype(dtype, copy=False).view(bits))
        for x, y in _blocks(a, b)
    )


def _describe_difference(a: np.ndarray, b: np.ndarray) -> str:
    """Describes how many values differ and by how much, with both sides cast to the narrower type."""
    narrower = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    count, largest = 0, 0.0
    for x, y in _blocks(a, b):
        x, y = (values.astype(narrower, copy=False).astype(np.float64) for values in (x, y))
        differ = ((x != y) | (np.signbit(x) != np.signbit(y))) & ~(np.isnan(x) & np.isnan(y))
        distances = abs(x[differ] - y[differ])
        count += len(distances)
        largest = max(largest, float(np.nan_to_num(distances, nan=np.inf, posinf=np.inf).max(initial=0.0)))
    return f"{count} of {a.size} values differ, largest difference {largest:.3g}"


def main(arguments: list[str], prog: str = "python -m conversion.verify") -> int:
    """Runs the command; returns 1 if anything differs."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="model directory")
    parser.add_argument("torch", type=Path, metavar="TORCH_DIR", help="checkpoint in the released or merged layout")
    options = parser.parse_args(arguments)
    report = verify(options.model, options.torch)
    for line in report.differences:
        print(line)
    for note in report.notes:
        print(f"note: {note}")
    if report.differences:
        print(f"{len(report.differences)} differences; {report.tensors} tensors compared")
        return 1
    print(f"the configurations and all {report.tensors} tensors agree")
    return 0


if __name__ == "__main__":
    run(main)
