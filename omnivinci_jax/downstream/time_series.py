"""Time series of the UCR archive as line plots with a question (Appendix B.5.2, Table 16).

A `.ts` file has comments (`#`), a header (`@problemName`, `@classLabel true 1 2`, ...), and after `@data` a line per
series: its dimensions and its label between colons, the values of a dimension between commas, `?` for a missing one.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from omnivinci_jax.av_world.generate import write_rows
from omnivinci_jax.downstream.line_plot import line_plot
from omnivinci_jax.downstream.rows import class_question, open_text, picture_row
from omnivinci_jax.errors import DataError


@dataclass(frozen=True)
class Series:
    """One series: its values, NaN where one is missing, and its class."""

    values: Float[np.ndarray, "dimensions length"]
    label: str


def read_ts(path: Path) -> tuple[list[Series], tuple[str, ...]]:
    """Reads a `.ts` file; returns its series and its classes in the order of the header.

    Raises:
        DataError: a file that cannot be read, another layout, or a class that the header does not have.
    """
    lines = open_text(path, "a .ts file of the UCR archive").splitlines()
    series, classes = [], None
    numbered = enumerate(lines, start=1)
    for _, line in numbered:
        key, *words = line.split() or [""]
        if key.lower() == "@data":
            break
        if key.lower() == "@timestamps" and words[:1] == ["true"]:
            raise DataError(f"{path}: series with time stamps are not supported; write them with even spacing")
        if key.lower() == "@classlabel" and words[:1] == ["true"]:
            classes = tuple(words[1:])
    else:
        raise DataError(f"{path}: no @data line: not a .ts file of the UCR archive")
    if not classes:
        raise DataError(f"{path}: no '@classLabel true CLASS ...' line before @data: only classification is supported")
    for number, line in numbered:
        if line.strip():
            series.append(_parse_line(line, classes, f"{path}:{number}"))
    if not series:
        raise DataError(f"{path}: no series after @data")
    return series, classes


def _parse_line(line: str, classes: tuple[str, ...], where: str) -> Series:
    *dimensions, label = line.strip().split(":")
    label = label.strip()
    if not dimensions:
        raise DataError(f"{where}: no ':' between the values and the class")
    if label not in classes:
        raise DataError(f"{where}: unknown class {label!r}; @classLabel has {', '.join(classes)}")
    try:
        curves = [[np.nan if v.strip() == "?" else float(v) for v in part.split(",")] for part in dimensions]
    except ValueError as error:
        raise DataError(f"{where}: {error}: values are numbers, or ? for a missing one") from None
    if len({len(curve) for curve in curves}) > 1:
        raise DataError(f"{where}: dimensions of different lengths: {', '.join(str(len(curve)) for curve in curves)}")
    values = np.array(curves)
    if np.isinf(values).any():
        raise DataError(f"{where}: an infinite value")
    return Series(values, label)


def vary(series: list[Series], copies: int, rng: np.random.Generator) -> list[Series]:
    """Returns `copies` variants of every series: mixed with another of its class and length, and noisy.

    The noise has a tenth of the standard deviation of the series; the other series has a weight below a half.
    """
    alike = defaultdict(list)
    for item in series:
        alike[item.label, item.values.shape].append(item.values)
    varied = []
    for item in series:
        for _ in range(copies):
            others = alike[item.label, item.values.shape]
            weight = rng.uniform(0, 0.5)
            mixed = (1 - weight) * item.values + weight * others[rng.integers(len(others))]
            noise = rng.normal(0, 0.1 * max(float(np.nanstd(mixed)), 1e-6), mixed.shape)
            varied.append(Series(mixed + noise, item.label))
    return varied


def convert(train: Path, test: Path, out: Path, copies: int, seed: int) -> dict[str, int]:
    """Writes train.jsonl, test.jsonl and their plots into `out`; returns the numbers of rows.

    Args:
        train: `.ts` file of the training series.
        test: `.ts` file of the test series, with the same classes.
        out: the folder.
        copies: variants of each training series (`vary`), beside the series itself.
        seed: of the variants.

    Raises:
        DataError: see `read_ts`; or the files have different classes.
    """
    (training, classes), (testing, test_classes) = read_ts(train), read_ts(test)
    if test_classes != classes:
        raise DataError(f"{test}: its classes {', '.join(test_classes)} are not those of {train}: {', '.join(classes)}")
    training = training + vary(training, copies, np.random.default_rng(seed))
    question, counts = class_question(classes), {}
    for split, series in (("train", training), ("test", testing)):
        rows = [
            picture_row(out, f"{split}-{index:06d}", line_plot(item.values), question, item.label)
            for index, item in enumerate(series)
        ]
        write_rows(out / f"{split}.jsonl", rows)
        counts[split] = len(rows)
    return counts
