"""Metrics by source: sums on the device, and metrics that the host computes from them."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from omnivinci_jax.data.index import Index
from omnivinci_jax.data.mixture import Mixture
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.settings import Source
from omnivinci_jax.train.source_metrics import SourceMeter
from omnivinci_jax.train.supervised_loss import by_source, sample_starts


def test_by_source_sums_the_slots_of_each_source():
    random = np.random.default_rng(0)
    values, sources = random.normal(size=(2, 3, 7)), random.integers(0, 4, (2, 3, 7))
    found = by_source(jnp.array(values), jnp.array(sources), 5)
    np.testing.assert_allclose(found, [values[sources == index].sum() for index in range(5)], rtol=1e-5, atol=1e-6)


def test_a_conversation_starts_where_its_segment_does():
    segments = np.array([[[1, 1, 2, 3, 3, 0, 0], [0, 0, 2, 2, 0, 0, 0]]])
    assert sample_starts(jnp.array(segments)).tolist() == [[[1, 0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]]]


def test_losses_token_fractions_and_skipped_samples_of_each_source():
    sizes = {"a": [(30, 0, 0, 0), (10, 0, 0, 0)], "b": [(60, 0, 0, 0)], "c": [(5, 0, 0, 0)]}
    sources = tuple(Source(name, name, "text") for name in sizes)
    indices = tuple(
        Index(
            Jsonl(Path(name)),
            np.arange(len(table)),
            np.arange(len(table)),
            np.array(table),
            np.zeros(len(table), np.int32),
            (),
        )
        for name, table in sizes.items()
    )
    meter = SourceMeter(Mixture(sources, indices))
    step = {"source_losses": [6.0, 8.0, 0.0], "source_weights": [3.0, 2.0, 0.0], "source_samples": [1, 1, 0]}
    step = {name: np.array(values) for name, values in step.items()}
    assert meter.add([0, 1, 2], step | {"finite": True}) == {"a": 1}
    assert meter.add([2], step | {"finite": False, "source_samples": np.array([0, 1, 0])}) == {}
    values = meter.values({"a": 1})
    assert values == pytest.approx(
        {
            "text/a/loss": 2.0, "text/a/tokens": 40 / 160, "text/a/skipped": 1,
            "text/b/loss": 4.0, "text/b/tokens": 120 / 160, "text/b/skipped": 0,
            "text/c/tokens": 0.0, "text/c/skipped": 0,
        }
    )  # fmt: skip
    assert meter.values({})["text/a/tokens"] == 0  # the last call reset the counts
