"""benchmarks/gpu.py writes each result at once, and a group that fails or is out of time loses only its own."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu


def results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_dry_run(tmp_path, monkeypatch):
    gpu.run_group("attention", tmp_path, gpu.dry_size())
    machine, *rows = results(tmp_path)
    assert machine["machine"].startswith("cpu; ")
    assert [row["what"] for row in rows] == ["xla, 256 slots", "xla, backward, 256 slots"]
    assert all(row["seconds"] > 0 and row["rate"] > 0 for row in rows)
    assert "| attention | xla, 256 slots | " in (tmp_path / "results.md").read_text()
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="has results already"):
        gpu.main()


def test_out_of_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", f"gpu --dry --out {tmp_path} --groups loader --seconds 1".split())
    with pytest.raises(SystemExit, match=r"^incomplete: loader$"):
        gpu.main()
    assert results(tmp_path) == [{"group": "loader", "error": "out of time"}]
    assert "| loader | out of time |" in (tmp_path / "results.md").read_text()


def test_a_failure_is_one_row(tmp_path, monkeypatch):
    def fail(_size):
        yield gpu.result("first", 0.5, 2.0, "clips/s", 0.25)
        raise MemoryError("out of memory\nlong trace")

    monkeypatch.setitem(gpu.GROUPS, "full", fail)
    with pytest.raises(MemoryError):
        gpu.run_group("full", tmp_path, gpu.dry_size())
    _, first, failed = results(tmp_path)
    assert first == {"group": "full", "what": "first", "seconds": 0.5, "rate": 2.0, "unit": "clips/s", "of_peak": 0.25}
    assert failed == {"group": "full", "error": "MemoryError: out of memory"}
    assert "| full | first | 500 ms | 2 clips/s | 25.0% |" in (tmp_path / "results.md").read_text()
