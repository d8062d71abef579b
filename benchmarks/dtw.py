"""Accuracy of the nearest training series, by dynamic time warping and by Euclidean distance (docs/downstream.md).

python benchmarks/dtw.py ItalyPowerDemand_TRAIN.ts ItalyPowerDemand_TEST.ts
"""

import sys
from pathlib import Path

import numpy as np

from omnivinci_jax.downstream.time_series import read_ts


def dtw(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the squared DTW distance, without a window, of one series (d, n) to each of `others` (m, d, n)."""
    cost = ((one[None, :, :, None] - others[:, :, None, :]) ** 2).sum(axis=1)
    total = np.full((len(others), one.shape[1] + 1, others.shape[2] + 1), np.inf)
    total[:, 0, 0] = 0
    for i in range(one.shape[1]):
        for j in range(others.shape[2]):
            before = np.minimum(np.minimum(total[:, i, j], total[:, i, j + 1]), total[:, i + 1, j])
            total[:, i + 1, j + 1] = cost[:, i, j] + before
    return total[:, -1, -1]


def main() -> None:
    (train, _), (test, _) = (read_ts(Path(path)) for path in sys.argv[1:3])
    known = np.stack([item.values for item in train])
    right = {"DTW": 0, "Euclidean": 0}
    for item in test:
        distances = {"DTW": dtw(item.values, known), "Euclidean": ((known - item.values) ** 2).sum(axis=(1, 2))}
        for name, values in distances.items():
            right[name] += train[int(values.argmin())].label == item.label
    for name, count in right.items():
        print(f"{name}: {count} of {len(test)}: {count / len(test):.2%}")


if __name__ == "__main__":
    main()
