"""The configurations fit the questions that they are for."""

import pytest

from omnivinci_jax.data.index import build_index
from omnivinci_jax.data.setup import make_processor
from omnivinci_jax.data.sources import open_records
from omnivinci_jax.downstream import control_charts, wafer_maps
from omnivinci_jax.settings import load_config
from tests.tiny import REPOSITORY


@pytest.mark.parametrize(
    ("name", "generate", "count"),
    [("control_charts", control_charts.generate, 9), ("wafer_maps", wafer_maps.generate, 8)],
)
def test_a_question_of_every_class_fits(tmp_path, name, generate, count):
    config = load_config([f"--config={REPOSITORY}/configs/downstream/{name}.py"])
    assert config.data.train.endswith("/train.jsonl") and config.data.held_out.endswith("/test.jsonl")
    generate(tmp_path, count, 1, seed=0)
    index = build_index(
        open_records(tmp_path / "train.jsonl"), make_processor(config), config.data.capacity, config.data.too_long
    )
    assert len(index) == count and not index.problems
    assert index.sizes[:, 1].tolist() == [1] * count  # one tile, so the tower sees the picture whole
