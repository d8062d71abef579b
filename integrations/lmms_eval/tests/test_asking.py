"""Asking: concurrent, patient, with failures apart; and resuming."""

import json

import pytest

from omnivinci_lmms_eval import client as module
from omnivinci_lmms_eval.answers import AnswerFile, key_of
from omnivinci_lmms_eval.client import Client, Failed, ServerDown
from omnivinci_lmms_eval.sampling import sampling
from server import server


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    waited = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    return waited


def test_a_busy_server_is_asked_again(waits):
    waiting = [429, 503, 200]
    with server(lambda _: (waiting.pop(0), "B")) as (address, bodies):
        assert Client(address + "/v1").ask({"x": 1}) == "B"
    assert bodies == [{"x": 1}] * 3 and waits == [7, 7]


def test_a_refusal_is_a_failure_at_once(waits):
    with server(lambda _: (400, "no tea")) as (address, bodies), pytest.raises(Failed, match="400: no tea"):
        Client(address).ask({})
    assert len(bodies) == 1 and waits == []


def test_a_server_that_is_gone_stops_everything(waits):
    with server(lambda _: (200, "B")) as (address, _):
        pass
    with pytest.raises(ServerDown, match=rf"{address}/v1/chat/completions: .*refused.* \(3 tries\)"):
        Client(address, tries=3).ask({})
    assert waits == [1, 2]


def test_a_run_goes_on(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = AnswerFile(str(path))
    first.add("k1", "task, test 0", answer="A")
    first.add("k2", "task, test 1", error="400: no tea")
    path.write_text(path.read_text() + '{"key": "k3", "ans')  # killed while it wrote
    again = AnswerFile(str(path))
    assert (again.get("k1"), again.get("k2"), again.get("k3")) == ("A", None, None)
    again.add("k2", "task, test 1", answer="B")
    assert [json.loads(line).get("answer") for line in path.read_text().splitlines()] == ["A", None, "B"]
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="is no file of answers: delete it"):
        AnswerFile(str(path))
    assert key_of("t", 1, {"a": 1, "b": 2}) == key_of("t", 1, {"b": 2, "a": 1}) != key_of("t", 2, {"a": 1, "b": 2})


def test_generation_settings():
    greedy = {"max_new_tokens": 16, "temperature": 0, "top_p": 0.7, "num_beams": 1, "do_sample": False}
    assert sampling({**greedy, "until": ["\n\n", ""]}) == {"max_tokens": 16, "temperature": 0.0, "stop": ["\n\n"]}
    assert sampling({"until": "X", "image_aspect_ratio": "pad"}) == {
        "max_tokens": 1024, "temperature": 0.0, "stop": ["X"]
    }  # fmt: skip
    assert sampling({"do_sample": True, "top_k": 5}) == {
        "max_tokens": 1024, "temperature": 1.0, "top_p": 1.0, "top_k": 5
    }  # fmt: skip
    assert sampling({"temperature": 0.5, "top_p": None})["temperature"] == 0.5
    for settings, problem in (({"num_beams": 5}, "no beam search"), ({"max_agentic_steps": 3}, "max_agentic_steps")):
        with pytest.raises(ValueError, match=problem):
            sampling(settings)
