from collections import Counter

from tests.media import fuzz


def test_damaged_files_give_a_value_or_one_line_of_error(tmp_path):
    outcomes = list(fuzz.fuzz(300, seed=0, keep=tmp_path))
    assert [outcome for outcome in outcomes if outcome.result == "failure"] == []
    counts = Counter(outcome.result for outcome in outcomes)
    assert counts["value"] > 30 and counts["error"] > 100
    containers = {outcome.file.split("-", 2)[2] for outcome in outcomes}
    assert len(containers) > 50


def test_a_file_that_takes_too_long_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0)
    (outcome,) = fuzz.fuzz(1, seed=0, keep=tmp_path)
    assert (outcome.result, outcome.message) == ("failure", "took more than 0 s")
    assert [path.name for path in tmp_path.iterdir()] == [outcome.file]
