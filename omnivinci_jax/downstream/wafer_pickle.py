"""Reads the published pickle of WM-811K, LSWMD.pkl, without executing anything that it contains.

A pickle names functions and calls them. This reader knows only the names by which pandas before 0.20 stores a table,
and gives each a class of its own that keeps what it is given; any other name is refused before anything is called.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from omnivinci_jax.errors import DataError

_CELLS = re.compile(r"[biuf][1248]|[SU]\d{1,4}|O[48]?")


class _DType:
    """A dtype: its text and, once its state is known, its byte order."""

    def __init__(self, text: str, *_: Any):
        if not (isinstance(text, str) and _CELLS.fullmatch(text)):
            raise pickle.UnpicklingError(f"a column of type {text!r}")
        self.text = text

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">") and self.text[0] != "O":
            self.text = state[1] + self.text


class _Array:
    """An array; `value` is NumPy's."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array without a type")
        if dtype.text[0] == "O":
            flat = np.fromiter(content, object, len(content))
            self.value = flat.reshape(shape, order="F" if fortran else "C")
        else:
            content = content.encode("latin-1") if isinstance(content, str) else content  # Python 2's bytes
            self.value = np.ndarray(shape, dtype.text, content, order="F" if fortran else "C")


class _Index:
    """Labels of rows, columns or blocks."""

    def __init__(self, values: Any):
        self.values = values


class _State:
    """A table, or the manager of its blocks of columns."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _new_index(_: type, fields: dict) -> _Index:
    return _Index(fields["data"].value if "data" in fields else range(fields["start"], fields["stop"], fields["step"]))


def _new_array(*_: Any) -> _Array:
    return _Array()


_NAMES: dict[tuple[str, str], Any] = {
    ("__builtin__", "slice"): slice,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("pandas.core.frame", "DataFrame"): _State,
    ("pandas.core.internals", "BlockManager"): _State,
    ("pandas.indexes.base", "_new_Index"): _new_index,
    ("pandas.indexes.base", "Index"): _Index,
    ("pandas.indexes.numeric", "Int64Index"): _Index,
    ("pandas.indexes.range", "RangeIndex"): _Index,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which the published table does not need")
        return _NAMES[module, name]


def read_table(path: Path) -> dict[str, list[Any]]:
    """Reads the columns of a pickled table by name; cells are numbers, texts, or `_Array`s (see `cell`).

    Raises:
        DataError: no such file, not a pickle, or a pickle that names anything but the parts of such a table.
    """
    try:
        with open(path, "rb") as file:
            table = _Unpickler(file, encoding="latin-1").load()
        axes, _, _, extra = table.state["_data"].state
        columns = list(axes[0].values)
        cells: dict[str, list[Any]] = {}
        for block in extra["0.14.1"]["blocks"]:
            values, places = block["values"], block["mgr_locs"]
            places = range(places.start, places.stop, places.step or 1) if isinstance(places, slice) else places.value
            for place, column in zip(places, values.value, strict=True):
                cells[columns[place]] = column.tolist()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give LSWMD.pkl of WM-811K") from None
    except Exception as error:  # damaged bytes can raise anything; nothing of the file has been executed
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: refused: {reason}; give LSWMD.pkl of WM-811K as it was published") from None
    return cells


def cell(value: Any) -> Any:
    """Returns what a cell of the table holds: an array as NumPy's."""
    return value.value if isinstance(value, _Array) else value
