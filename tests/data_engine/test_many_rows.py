"""Rows through all stages, as in benchmarks/data_engine.py, which measures 100,000 of them."""

import asyncio

from benchmarks import data_engine


def test_rows_go_through_all_stages_and_resume_without_a_request(tmp_path):
    rows, videos, out = 100, tmp_path / "videos", tmp_path / "out"
    data_engine.make_links(videos, rows)
    out.mkdir()
    files, requests = [], []
    with data_engine.instant_media():
        for _ in range(2):
            transport = data_engine.Instant()
            output, store = asyncio.run(data_engine.run(videos, rows, out, transport, log=lambda *_, **__: None))
            store.close()
            files.append((out / "questions.jsonl").read_bytes())
            requests.append(transport.requests)
            assert output.counts.stages["questions kept"] == output.counts.stages["captions kept"] == rows
    assert files[0] == files[1] and files[0].count(b"\n") == rows
    # Six requests a row; without media, the judge reads the same question in at most 24 orders of its options.
    assert 6 * rows < requests[0] <= 6 * rows + 24 and requests[1] == 0
