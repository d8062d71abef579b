"""Reads and writes safetensors files (one, or shards with an index) tensor by tensor."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from omnivinci_jax.errors import UserError

Shape = tuple[int, ...]
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Of the tensors of quantized layers (conversion/compressed.py).
QUANTIZED_DTYPES = {
    "I8": np.dtype(np.int8),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
_STORED = DTYPES | QUANTIZED_DTYPES
_NAMES = {dtype: name for name, dtype in _STORED.items()}
SHARD_BYTES = 4 * 10**9
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


class StoredTensor(NamedTuple):
    """A tensor in a file: where its bytes are, and how to read them."""

    file: Path
    offset: int
    shape: Shape
    dtype: np.dtype

    def read(self) -> np.ndarray:
        """Reads the tensor; raises UserError if the file was truncated meanwhile."""
        array = np.fromfile(self.file, self.dtype, int(np.prod(self.shape)), offset=self.offset)
        if array.size != np.prod(self.shape):
            raise UserError(f"{self.file}: the file is truncated; copy it again")
        return array.reshape(self.shape)


def is_checkpoint(folder: Path) -> bool:
    """Returns whether `folder` itself contains a model's safetensors files."""
    return (folder / INDEX).is_file() or (folder / SINGLE).is_file()


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of the single file or all shards in `folder`, by name; reads headers only.

    Raises:
        UserError: a missing or truncated file, an index that contradicts the files or names one outside the folder, a
            type that no parameter has.
    """
    if not (folder / INDEX).is_file():
        return _header(folder / SINGLE)
    index = folder / INDEX
    try:
        names = json.loads(index.read_text())["weight_map"]
        files = sorted(set(names.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not an index of safetensors files (no weight_map)") from None
    found: dict[str, StoredTensor] = {}
    for file in files:
        if Path(file).name != file or file in ("", ".", ".."):
            raise UserError(f"{index}: names {file!r}, which is outside the directory; nothing was read")
        if not (folder / file).is_file():
            raise UserError(f"{folder / file}: no such file, but {INDEX} names it; copy the missing shard")
        found |= _header(folder / file)
    for name, file in names.items():
        if name not in found or found[name].file.name != file:
            raise UserError(f"{folder / file}: no tensor {name}, but {INDEX} lists it here")
    for name, tensor in found.items():
        if name not in names:
            raise UserError(f"{tensor.file}: tensor {name} is not in {INDEX}")
    return found


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise UserError(f"{file}: the file is truncated or not a safetensors file; copy it again")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _stored(file, 8 + length, size, name, entry) for name, entry in header.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: the file is truncated or not a safetensors file; copy it again") from None
    if end != size:
        raise UserError(f"{file}: the file is truncated: {size} of {end} bytes; copy it again")
    return tensors


def _stored(file: Path, start: int, size: int, name: str, entry: Mapping) -> StoredTensor:
    if entry["dtype"] not in _STORED:
        raise UserError(f"{file}: {name} has type {entry['dtype']}; supported: {', '.join(DTYPES)}")
    dtype, (begin, end) = _STORED[entry["dtype"]], entry["data_offsets"]
    tensor = StoredTensor(file, start + begin, tuple(entry["shape"]), dtype)
    if end - begin != int(np.prod(tensor.shape)) * dtype.itemsize or start + end > size:
        raise UserError(f"{file}: {name} exceeds the file, which is truncated or damaged; copy it again")
    return tensor


class TensorWriter:
    """Writes tensors in a declared order (name, shape, type) to files of at most SHARD_BYTES in a folder."""

    def __init__(self, folder: Path, tensors: Iterable[tuple[str, Shape, np.dtype]], limit: int = SHARD_BYTES):
        """Plans the shards; `limit` is in bytes (a larger tensor gets its own shard)."""
        shards: list[dict[str, dict]] = [{}]
        position = total = 0
        for name, shape, dtype in tensors:
            size = int(np.prod(shape)) * dtype.itemsize
            if shards[-1] and position + size > limit:
                shards.append({})
                position = 0
            shards[-1][name] = dict(dtype=_NAMES[dtype], shape=list(shape), data_offsets=[position, position + size])
            position += size
            total += size
        self._shards = dict(zip(self._file_names(len(shards)), shards, strict=True))
        self._folder, self._order = folder, iter([(f, name) for f, shard in self._shards.items() for name in shard])
        self._file, self._handle = None, None
        folder.mkdir(parents=True, exist_ok=True)
        if len(shards) > 1:
            names = {name: file for file, shard in self._shards.items() for name in sorted(shard)}
            index = {"metadata": {"total_size": total}, "weight_map": names}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    @staticmethod
    def _file_names(count: int) -> list[str]:
        if count == 1:
            return [SINGLE]
        return [f"model-{shard:05d}-of-{count:05d}.safetensors" for shard in range(1, count + 1)]

    def write(self, name: str, array: np.ndarray) -> None:
        """Appends the next declared tensor; `array` is contiguous, with the declared shape and type."""
        file, expected = next(self._order)
        entry = self._shards[file][expected]
        assert name == expected and list(array.shape) == entry["shape"] and _NAMES[array.dtype] == entry["dtype"]
        if file != self._file:
            self.close()
            self._file, self._handle = file, (self._folder / file).open("wb")
            header = json.dumps({"__metadata__": {"format": "pt"}, **self._shards[file]}).encode()
            header += b" " * (-len(header) % 8)
            self._handle.write(struct.pack("<Q", len(header)) + header)
        assert self._handle is not None
        self._handle.write(array.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Closes the current file."""
        if self._handle is not None:
            self._handle.close()
