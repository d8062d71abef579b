"""The model of lmms-eval: concurrent questions, failures apart, and resuming."""

import threading

import numpy as np
import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

from server import server

RED = Image.new("RGB", (2, 2), "red")
DOCUMENTS = [[np.zeros(160), RED], [], [RED], [RED], ["gone.mp4"]]  # sound and image, nothing, image, image, no file
GREEDY = {"max_new_tokens": 4, "do_sample": False, "until": ["\n\n"]}


def ask(address: str, questions: list[int], repeats: int = 1, **arguments) -> tuple[list[str], list[int]]:
    """Asks about documents; returns the answers, and the documents that lmms-eval would score."""
    model = get_model("omnivinci_server")(base_url=address, batch_size=1, tries=1, **arguments)
    model.task_dict = {"task": {"test": DOCUMENTS}}
    instances = [
        Instance(
            "generate_until", (f"What is {index}?", GREEDY, lambda document: document, index, "task", "test"), 0,
            {"task": "task", "doc_id": index, "repeats": repeats},
        )
        for index in questions
    ]  # fmt: skip
    answers = model.generate_until([instance for instance in instances for _ in range(repeats)])
    return answers, [instance.doc_id for instance in instances]


def text_of(body: dict) -> str:
    return body["messages"][0]["content"][-1]["text"]


def test_questions_are_asked_at_once_and_answered_in_order():
    together = threading.Barrier(3, timeout=10)

    def answer(body: dict) -> tuple[int, str]:
        together.wait()
        return 200, f"to {text_of(body)}"

    with server(answer) as (address, bodies):
        answers, documents = ask(address, [3, 0, 2], concurrent=3, use_audio_in_video=False)
    assert answers == ["to What is 3?", "to What is 0?", "to What is 2?"] and documents == [3, 0, 2]
    [both] = [body for body in bodies if text_of(body) == "What is 0?"]
    assert [part["type"] for part in both["messages"][0]["content"]] == ["audio_url", "image_url", "text"]
    assert {key: both[key] for key in both if key != "messages"} == {
        "max_tokens": 4, "temperature": 0.0, "stop": ["\n\n"], "mm_processor_kwargs": {"use_audio_in_video": False}
    }  # fmt: skip


def test_failures_are_in_no_score_and_asked_again(tmp_path):
    log = str(tmp_path / "answers.jsonl")
    refused = {"What is 2?"}
    with server(lambda body: (400, "too long") if text_of(body) in refused else (200, "B")) as (address, bodies):
        with pytest.raises(RuntimeError, match="2 of 3 questions failed, more than max_failures = 1 allows"):
            ask(address, [0, 1, 2], max_failures=1, answers=log, concurrent=1)
        assert ask(address, [0, 1, 2, 3], max_failures=2, answers=log) == (["B", "", "", "B"], [0, -1, -1, 3])
        refused.clear()
        del bodies[:]
        assert ask(address, [0, 1, 2, 3], max_failures=1, answers=log) == (["B", "", "B", "B"], [0, -1, 2, 3])
        assert [text_of(body) for body in bodies] == ["What is 2?"]
        assert ask(address, [1], text_only=True, answers=log) == (["B"], [1])
        assert ask(address, [4], max_failures=1, answers=log) == ([""], [-1])
    lines = (tmp_path / "answers.jsonl").read_text()
    assert '"question": "task, test 2", "error": "400: too long"' in lines
    assert '"question": "task, test 1", "error": "the task found no media: give text_only=True' in lines
    assert "its media cannot be read: ValueError('gone.mp4: no such file')" in lines


def test_repeats_are_asked_each(tmp_path):
    with server(lambda _: (200, "B")) as (address, bodies):
        assert ask(address, [0, 2], repeats=3, answers=str(tmp_path / "a.jsonl"))[0] == ["B"] * 6
        assert len(bodies) == 6
    with pytest.raises(ValueError, match="omnivinci_server has no argument max_tokens"):
        ask(address, [0], max_tokens=3)
