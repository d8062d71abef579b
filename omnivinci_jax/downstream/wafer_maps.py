"""Wafer maps of eight defects with the question of Figure 12 (Appendix B.5.1, Table 15).

A map has 0 outside the wafer, 1 for a die that passes and 2 for one that fails. The published maps are WM-811K's
(`wafer_pickle.py`); generated ones have the same classes.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from omnivinci_jax.av_world.generate import write_rows
from omnivinci_jax.downstream.line_plot import SIDE
from omnivinci_jax.downstream.rows import picture_row
from omnivinci_jax.downstream.wafer_pickle import cell, read_table
from omnivinci_jax.errors import DataError

CLASSES = ("loc", "edge-loc", "center", "edge-ring", "scratch", "near-full", "donut", "random")
QUESTION = (
    "This is a image of a wafer map, the yellow pattern in the circle refers to the defect pattern. There are 8 "
    "possible types of defect of wafer map (1) loc. (2) edge-loc. (3) center. (4) edge-ring. (5) scratch. "
    "(6) near-full. (7) donut. (8) random. What type of anomaly does the provided image present?"
)
COLOURS = np.array([(68, 1, 84), (33, 145, 140), (253, 231, 37)], np.uint8)  # outside, pass, fail
_COLUMNS = ("waferMap", "trianTestLabel", "failureType")  # "trian" is how it was published
_SPLITS = {"Training": "train", "Test": "test"}


def picture(wafer: UInt8[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "448 448 3"]:
    """Draws a map over the whole picture; failing dies are yellow."""
    row, column = (np.arange(SIDE) * size // SIDE for size in wafer.shape)
    return COLOURS[wafer[row[:, None], column]]


def convert(path: Path, out: Path) -> dict[str, int]:
    """Writes WM-811K's labelled defects as train.jsonl and test.jsonl, by its own split; returns the numbers of rows.

    Raises:
        DataError: see `read_table`; or a missing column, an unknown class or split, or a cell that is no map.
    """
    table = read_table(path)
    for name in _COLUMNS:
        if name not in table:
            raise DataError(f"{path}: no column {name}; it has {', '.join(map(str, table))}")
    rows: dict[str, list[dict]] = {split: [] for split in _SPLITS.values()}
    for index, (wafer, split, kind) in enumerate(zip(*(table[name] for name in _COLUMNS), strict=True)):
        where = f"{path}: row {index}"
        kind, split = _label(kind, where).lower(), _label(split, where)
        if kind in ("", "none"):
            continue
        if kind not in CLASSES:
            raise DataError(f"{where}: unknown class {kind!r}; WM-811K has {', '.join(CLASSES)} and none")
        if split not in _SPLITS:
            raise DataError(f"{where}: trianTestLabel is {split!r}; WM-811K has {', '.join(_SPLITS)}")
        wafer = np.asarray(cell(wafer))
        if wafer.ndim != 2 or not wafer.size or not np.isin(wafer, (0, 1, 2)).all():
            raise DataError(f"{where}: waferMap is not a matrix of 0, 1 and 2")
        name = f"{_SPLITS[split]}-{index:06d}"
        rows[_SPLITS[split]].append(picture_row(out, name, picture(wafer.astype(np.uint8)), QUESTION, kind))
    return _write(out, rows)


def _label(value: object, where: str) -> str:
    """Returns a text that may be nested in arrays, as MATLAB left it; "" for an empty one."""
    while isinstance(value := cell(value), np.ndarray):
        if not value.size:
            return ""
        value = value.flat[0]
    if not isinstance(value, str):
        raise DataError(f"{where}: a label is {value!r}, not a text")
    return str(value)


def draw_wafer(kind: str, rng: np.random.Generator) -> UInt8[np.ndarray, "side side"]:
    """Draws a map of 26 to 52 dies across with the defect, and a few failing dies everywhere."""
    side = int(rng.integers(26, 53))
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    where = rng.uniform(-np.pi, np.pi)
    away = np.abs((angle - where + np.pi) % (2 * np.pi) - np.pi)  # from the direction of the defect
    density = np.full((side, side), rng.uniform(0.01, 0.06))
    strong = rng.uniform(0.7, 0.95)
    match kind:
        case "center":
            centre = np.hypot(x - rng.uniform(-0.1, 0.1), y - rng.uniform(-0.1, 0.1))
            density[centre < rng.uniform(0.2, 0.4)] = strong
        case "donut":
            middle, half = rng.uniform(0.4, 0.55), rng.uniform(0.1, 0.16)
            density[np.abs(radius - middle) < half] = strong
        case "edge-ring":
            ring = (radius > rng.uniform(0.84, 0.92)) & (away < rng.uniform(0.85, 1.0) * np.pi)
            density[ring] = strong
        case "edge-loc":
            density[(radius > rng.uniform(0.7, 0.85)) & (away < rng.uniform(0.25, 0.7))] = strong
        case "loc":
            distance = rng.uniform(0.4, 0.6)
            spot = np.hypot((x - distance * np.cos(where)) * rng.uniform(0.7, 1.4), y - distance * np.sin(where))
            density[spot < rng.uniform(0.14, 0.25)] = strong
        case "scratch":
            density[_scratch(x, y, rng, 1.2 / side)] = strong
        case "near-full":
            density[:] = rng.uniform(0.8, 0.97)
        case "random":
            density[:] = rng.uniform(0.25, 0.5)
        case _:
            raise DataError(f"unknown class {kind!r}; wafer maps have {', '.join(CLASSES)}")
    fails = rng.random((side, side)) < density
    return np.where(radius <= 1, 1 + fails, 0).astype(np.uint8)


def _scratch(
    x: Float[np.ndarray, "side side"], y: Float[np.ndarray, "side side"], rng: np.random.Generator, half_width: float
) -> np.ndarray:
    """Returns which dies lie on a line of 0.7 to 1.3 radii that bends a little."""
    heading, bend = rng.uniform(-np.pi, np.pi), rng.uniform(-0.6, 0.6)
    length, start = rng.uniform(0.7, 1.3), rng.uniform(-0.5, 0.5, 2)
    inside = np.zeros(x.shape, bool)
    for part in np.linspace(-0.5, 0.5, 60):
        direction = heading + bend * part
        px, py = start + part * length * np.array((np.cos(direction), np.sin(direction)))
        inside |= np.hypot(x - px, y - py) < half_width
    return inside


def generate(out: Path, train: int, test: int, seed: int) -> dict[str, int]:
    """Writes generated maps as train.jsonl and test.jsonl; the classes take turns. Returns the numbers of rows."""
    rows: dict[str, list[dict]] = {}
    for number, (split, count) in enumerate({"train": train, "test": test}.items()):
        kinds = [CLASSES[index % len(CLASSES)] for index in range(count)]
        wafers = [draw_wafer(kind, np.random.default_rng((seed, number, index))) for index, kind in enumerate(kinds)]
        rows[split] = [
            picture_row(out, f"{split}-{index:06d}", picture(wafer), QUESTION, kind)
            for index, (wafer, kind) in enumerate(zip(wafers, kinds, strict=True))
        ]
    return _write(out, rows)


def _write(out: Path, rows: dict[str, list[dict]]) -> dict[str, int]:
    for split, made in rows.items():
        write_rows(out / f"{split}.jsonl", made)
    return {split: len(made) for split, made in rows.items()}
