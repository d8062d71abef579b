"""Which samples an evaluation counts, without a model."""

import json
from pathlib import Path

import numpy as np
import pytest

from omnivinci_jax.data.index import build_index
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.errors import DataError
from omnivinci_jax.evaluation.accuracy import Evaluation, evaluate
from omnivinci_jax.evaluation.scoring import Scores
from omnivinci_jax.mesh.mesh import make_mesh, on_mesh
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, MeshConfig
from tests.tiny import tiny_config, tiny_tokenizer


class Broken(Processor):
    """Fails on conversations about "b", as no decoder of ours should."""

    def lay_out(self, conversation, sizes, *, generate=False):
        if "b" in conversation.messages[0].content:
            raise IndexError("list index out of range")
        return super().lay_out(conversation, sizes, generate=generate)


def wrong_on_zhe(params: dict, batch) -> Scores:
    """Calls every answer right, except in conversations with the letter "ж"."""
    zhe, segments = tiny_tokenizer().encode("ж")[0], np.asarray(batch.segment_ids)
    marked = np.unique(segments[np.asarray(batch.tokens) == zhe])
    assert segments.shape[:2] == (1, 1)  # one row a batch, so that segments are conversations
    correct, weights = ~np.isin(segments, marked), np.asarray(batch.loss_weights)
    source = np.zeros_like(np.asarray(batch.clip_source))
    return Scores(weights * 2.0, weights, correct | (weights == 0), segments, None, source)


def run(data: Path, max_skipped: float) -> Evaluation:
    capacity = Capacity(rows=1, slots=64, tiles=1, windows=1, clips=1)
    processor = Processor(tiny_config(), tiny_tokenizer())
    index = build_index(Jsonl(data), processor, capacity, "skip", quiet=True)
    settings = DataConfig(groups=1, capacity=capacity, workers=0, max_skipped=max_skipped)
    mesh = make_mesh(MeshConfig())
    with on_mesh(mesh):
        return evaluate(wrong_on_zhe, {}, index, Broken(processor.config, processor.tokenizer), settings, mesh)


def test_a_sample_that_raises_is_skipped_and_named(tmp_path):
    data = tmp_path / "data.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}], "kind": kind}
        for text, kind in (("a", "x"), ("b", "x"), ("ж", "y"))
    ]
    data.write_text("\n".join([*map(json.dumps, lines), '{"messages": [}']))
    found = run(data, max_skipped=0.5)
    assert found.by_kind == {"x": 1.0, "y": 0.0} and found.overall == 0.5 and found.loss == 2.0
    assert found.skipped[0].startswith(f"{data}:4: not JSON: ")
    assert found.skipped[1:] == (f"{data}:2: IndexError: list index out of range",)
    with pytest.raises(DataError, match=r"data\.jsonl: 1 of 3 samples cannot be used, more than max_skipped = 0\.001"):
        run(data, max_skipped=0.001)
