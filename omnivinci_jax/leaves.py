"""Reads and writes leaves of an Orbax checkpoint in pieces: a stacked leaf of 3.8 GB is never in memory.

Orbax copies numpy leaves before writing, and compresses them. So a leaf here is a shape, a type and an iterator over
pieces; a custom type handler writes the pieces through TensorStore, uncompressed, in chunks of at most CHUNK_BYTES. The
result is an ordinary checkpoint.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.traverse_util import unflatten_dict

from omnivinci_jax.model_dir import CHUNK_BYTES

Shape = tuple[int, ...]
Pieces = Iterator[tuple[int | None, np.ndarray]]
_BLOCK_COLUMNS = 512  # columns copied at once in a transpose, so that they fit in cache; a plain copy is 7 times slower


@dataclass(frozen=True)
class LazyLeaf:
    """A leaf that is not read yet. `pieces` yields (index on the first axis, slice), or (None, the whole leaf) once."""

    shape: Shape
    dtype: np.dtype
    pieces: Callable[[], Pieces]


def save(folder: Path, leaves: dict[str, LazyLeaf]) -> None:
    """Writes a checkpoint of `leaves` (by path with slashes) to `folder`, piece by piece."""
    types = ocp.type_handlers.create_type_handler_registry((LazyLeaf, _LazyHandler()))
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=types)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), ocp.args.PyTreeSave(unflatten_dict(leaves, sep="/")))


class StoredLeaves:
    """The leaves of a checkpoint on disk, in any format that Orbax writes."""

    def __init__(self, folder: Path):
        """Reads the format of the checkpoint `folder`."""
        metadata = json.loads((folder / "_METADATA").read_text())
        self._base, self._use_ocdbt = f"{folder.absolute()}/", metadata["use_ocdbt"]
        self._driver = "zarr3" if metadata["use_zarr3"] else "zarr"

    def open(self, path: str) -> "StoredLeaf":
        """Opens the leaf `path`, with slashes."""
        name = path.replace("/", ".")
        kvstore = {"driver": "file", "path": f"{self._base}{name}/"}
        if self._use_ocdbt:
            kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": self._base}, "path": f"{name}/"}
        return StoredLeaf({"driver": self._driver, "kvstore": kvstore})


class StoredLeaf:
    """A leaf of a checkpoint on disk; see `StoredLeaves`."""

    def __init__(self, spec: dict[str, Any]):
        """Opens the array of a TensorStore spec."""
        # A chunk may hold several slices: cache it until the last one is read.
        context = ts.Context({"cache_pool": {"total_bytes_limit": 2 * CHUNK_BYTES}})
        self._array = ts.open(spec, open=True, context=context).result()
        self.shape, self.dtype = tuple(self._array.shape), self._array.dtype.numpy_dtype

    def read(self, index: int | None = None) -> np.ndarray:
        """Reads the whole leaf, or slice `index` of the first axis."""
        return (self._array if index is None else self._array[index]).read().result()


def contiguous(x: np.ndarray) -> np.ndarray:
    """Returns `x` if it is contiguous, else a contiguous copy, made in blocks that fit in cache."""
    if x.flags.c_contiguous:
        return x
    if x.ndim != 2:
        return np.ascontiguousarray(x)
    copy = np.empty(x.shape, x.dtype)
    for start in range(0, x.shape[1], _BLOCK_COLUMNS):
        copy[:, start : start + _BLOCK_COLUMNS] = x[:, start : start + _BLOCK_COLUMNS]
    return copy


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """Writes a LazyLeaf as Orbax would write a numpy array, so that Orbax reads it back as one."""

    async def serialize(self, values, infos, args=None):
        for leaf, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            assert isinstance(leaf, LazyLeaf)
            _write(f"{info.path}/", leaf)
        return []

    def memory_size(self, values):
        return [(0, 0) for _ in values]


def _write(path: str, leaf: LazyLeaf) -> None:
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": path},
        "metadata": {"compressor": None, "chunks": _chunks(leaf)},
        "store_data_equal_to_fill_value": True,
    }
    array = ts.open(spec, create=True, dtype=ts.dtype(leaf.dtype), shape=leaf.shape).result()
    pending = None
    for index, piece in leaf.pieces():
        # The next piece is read and transposed while this one is written.
        target = array if index is None else array[index]
        write = target.write(contiguous(piece), can_reference_source_data_indefinitely=True)
        if pending is not None:
            pending.result()
        pending = write
    if pending is not None:
        pending.result()


def _chunks(leaf: LazyLeaf) -> list[int]:
    """Returns the chunk shape: one slice of the first axis, or as many of its rows as fit in CHUNK_BYTES."""
    if not leaf.shape:
        return []
    chunks = [1, *leaf.shape[1:]] if len(leaf.shape) > 2 else list(leaf.shape)
    axis = 1 if len(leaf.shape) > 2 else 0
    row_bytes = int(np.prod(chunks[axis + 1 :])) * leaf.dtype.itemsize
    chunks[axis] = max(1, min(chunks[axis], CHUNK_BYTES // row_bytes))
    return chunks
