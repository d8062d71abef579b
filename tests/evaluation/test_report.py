"""The files that an evaluation and a run leave."""

import json

from omnivinci_jax.evaluation.accuracy import Evaluation, kind_of
from omnivinci_jax.evaluation.report import write_report
from omnivinci_jax.train.metrics import MetricsLog


def test_no_result_and_no_text_of_the_data_breaks_the_report(tmp_path):
    """NaN, and kinds of questions with half a surrogate pair, and with what matplotlib reads as mathematics."""
    metrics = MetricsLog(tmp_path, 0)
    for step, loss in enumerate((4.0, float("nan"), 2.0), start=1):
        metrics.write(step, {"loss": loss})
    metrics.write(3, {"loss": float("nan"), "accuracy": 0.5}, "val")
    metrics.close()
    kinds = [kind_of({"kind": kind}) for kind in ("a\ud83d", "$x_{$", None)]
    assert kinds == ["a\ufffd", "$x_{$", "all"]
    evaluation = Evaluation(
        overall=0.5,
        by_kind=dict.fromkeys(kinds, 0.5),
        counts=dict.fromkeys(kinds, 2),
        loss=float("nan"),
        skipped=("data.jsonl:3: TypeError: x",),
        retrieval={"vision_to_audio_r1": float("inf")} | dict.fromkeys(
            ("vision_to_audio_r5", "audio_to_vision_r1", "audio_to_vision_r5", "clips"), 1.0
        ),
    )  # fmt: skip
    write_report(tmp_path, evaluation, 1.0, 10)

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert results["loss"] is None and results["retrieval"]["vision_to_audio_r1"] is None
    assert results["overall"] == 0.5 and results["counts"] == {"a\ufffd": 2, "$x_{$": 2, "all": 2}
    assert "| a\ufffd | 50.0% | 2 |" in (tmp_path / "report.md").read_text()
