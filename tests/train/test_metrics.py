"""What a run logs, before and after it resumes."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from omnivinci_jax.train.metrics import MetricsLog, read_metrics


def log(folder, start: int, steps: dict[int, float]) -> None:
    metrics = MetricsLog(folder, start)
    for step, loss in steps.items():
        metrics.write(step, {"loss": loss})
    metrics.close()


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    log(tmp_path, 0, {1: 4.0, 2: 3.0, 3: 2.5})
    log(tmp_path, 2, {3: 2.0, 4: 1.0})
    lines = [(line["step"], line["split"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert lines == [(1, "train", 4.0), (2, "train", 3.0), (3, "train", 2.0), (4, "train", 1.0)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("train/loss")] == [(s, v) for s, _, v in lines]


def test_metrics_that_are_not_finite_are_null(tmp_path):
    log(tmp_path, 0, {1: 4.0, 2: float("nan"), 3: float("inf")})
    log(tmp_path, 3, {4: 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count('"loss": null') == 2 and "NaN" not in text and "Infinity" not in text
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [4.0, None, None, 1.0]
