"""Control charts of nine classes with the question of Figure 13 (Appendix B.5.2).

The paper's charts are not published. `cycling`, `trending` and `shift` follow the generator of the UCI data set
"Synthetic Control Chart Time Series" (Alcock and Manolopoulos, 1999), with its ranges: 60 points, mean 30, noise of 2
times a uniform variable in ±3. The other six extend it, since the paper only names and draws them.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from omnivinci_jax.av_world.generate import write_rows
from omnivinci_jax.downstream.line_plot import line_plot
from omnivinci_jax.downstream.rows import class_question, picture_row
from omnivinci_jax.errors import DataError

LENGTH, MEAN, SIGMA = 60, 30.0, 2.0
LIMIT = 3 * SIGMA  # of control, above and below the mean
CLASSES = (
    "cluster", "constant", "cycling", "missing", "period_trending", "periodic_patterns", "shift", "trending", "uneven",
)  # fmt: skip


def draw_chart(kind: str, rng: np.random.Generator) -> Float[np.ndarray, "1 60"]:
    """Draws the values of a chart; NaN where the sensor was out.

    cluster: the values bunch on a few levels. constant: a stuck sensor, almost without noise. cycling: a sine.
    missing: an outage of 6 to 20 points. period_trending: a sine on a trend. periodic_patterns: a short spike repeats.
    shift: one step to another level. trending: a slope. uneven: noise that is strong over a part of the chart.
    """
    time = np.arange(LENGTH)
    noise = rng.uniform(-3, 3, LENGTH) * SIGMA
    sign = rng.choice((-1.0, 1.0))
    sine = rng.uniform(10, 15) * np.sin(2 * np.pi * (time / rng.uniform(10, 15) + rng.uniform()))
    slope = sign * rng.uniform(0.2, 0.5) * time
    match kind:
        case "cluster":
            levels = rng.permutation((-9.0, -3.0, 3.0, 9.0)) + rng.uniform(-1, 1, 4)
            values = levels[time // 5 % 4] if rng.random() < 0.5 else levels[rng.integers(4, size=12)[time // 5]]
            values = values + 0.3 * noise
        case "constant":
            values = rng.uniform(-9, 9) + 0.02 * noise
        case "cycling":
            values = sine + noise
        case "missing":
            length, values = int(rng.integers(6, 21)), noise.copy()
            start = int(rng.integers(4, LENGTH - 4 - length))
            values[start : start + length] = np.nan
        case "period_trending":
            values = 0.6 * sine + slope + noise
        case "periodic_patterns":
            period, width = int(rng.integers(8, 16)), int(rng.integers(1, 3))
            on = (time + int(rng.integers(period))) % period < width
            values = noise + sign * rng.uniform(10, 15) * on
        case "shift":
            values = noise + sign * rng.uniform(7.5, 20) * (time >= rng.integers(LENGTH // 3, 2 * LENGTH // 3))
        case "trending":
            values = slope + noise
        case "uneven":
            start, length = int(rng.integers(5, 30)), int(rng.integers(15, 25))
            strong = (time >= start) & (time < start + length)
            values = np.where(strong, 2.5, 0.3) * noise
        case _:
            raise DataError(f"unknown class {kind!r}; control charts have {', '.join(CLASSES)}")
    return (MEAN + values)[None]


def picture(chart: Float[np.ndarray, "1 60"]) -> UInt8[np.ndarray, "448 448 3"]:
    """Draws a chart with its centre line and its control limits."""
    return line_plot(chart, (MEAN - 30, MEAN + 30), (MEAN - LIMIT, MEAN, MEAN + LIMIT))


def generate(out: Path, train: int, test: int, seed: int) -> dict[str, int]:
    """Writes train.jsonl, test.jsonl and their charts; the classes take turns. Returns the numbers of rows."""
    question = class_question(CLASSES)
    counts = {"train": train, "test": test}
    for number, (split, count) in enumerate(counts.items()):
        rows = []
        for index in range(count):
            kind = CLASSES[index % len(CLASSES)]
            chart = draw_chart(kind, np.random.default_rng((seed, number, index)))
            rows.append(picture_row(out, f"{split}-{index:06d}", picture(chart), question, kind))
        write_rows(out / f"{split}.jsonl", rows)
    return counts
