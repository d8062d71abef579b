"""`omnivinci evaluate --metric`: scores, samples, resuming, failures, and what benchmarks' own scorers read."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnivinci_jax import cli, model_dir
from omnivinci_jax.config_json import write_config
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.evaluation import command
from omnivinci_jax.generate.answers import Answer
from omnivinci_jax.generate.assistant import Assistant
from omnivinci_jax.sequence.chat import Media
from tests.generate.conftest import tiny_assistant
from tests.tiny import tiny_config, tiny_tokenizer

SAID = {"sky": "Blue.", "grass": "It is (B).", "snow": "A dog", "sun": "The answer is A", "rain": "I cannot tell"}


class Scripted(Assistant):
    """Answers by SAID, and keeps the conversations that it was asked; it is interrupted after `patience` of them."""

    asked: list
    patience: int

    def generate_batch(self, questions, **sampling):
        assert sampling == {"max_new_tokens": 64}
        answers = []
        for question in questions:
            if len(Scripted.asked) == Scripted.patience:
                raise KeyboardInterrupt
            Scripted.asked.append(question)
            text = question.messages[-1].content[-1]
            found = next((said for word, said in SAID.items() if word in str(question.messages)), text)
            try:
                self.processor.load(question)
                answers.append(Answer(f" {found}\n", (1, 2), "end", 9, 0.1, 1.0))
            except Exception as error:
                answers.append(error)
        return answers


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    """A folder with a configuration, whose model is Scripted."""
    folder = tmp_path / "model"
    (folder / "params").mkdir(parents=True)
    write_config(tiny_config(), folder / "config.json")
    Scripted.asked, Scripted.patience = [], 1000
    processor = Processor(tiny_config(), tiny_tokenizer())
    monkeypatch.setattr(command, "load", lambda *_: Assistant(None, None, processor))
    monkeypatch.setattr(command, "Assistant", Scripted)
    return folder


def ask(word: str, answer: str, kind: str = "colour", **more) -> dict:
    text = f"Which colour has the {word}? A. green B. blue"
    return {"messages": [{"role": "user", "content": text}], "options": ["green", "blue"], "answer": answer,
            "kind": kind, "id": word, **more}  # fmt: skip


def write(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


QUESTIONS = (ask("sky", "blue"), ask("grass", "green"), ask("snow", "B", "odd"), ask("sun", "A"), ask("rain", "A"))


def run(capsys, model: Path, data: Path, *flags: object) -> tuple[int, str, str]:
    out = data.parent / "out.json"
    code = cli.main(["evaluate", "--model", str(model), "--data", str(data), "--out", str(out), *map(str, flags)])
    return code, *capsys.readouterr()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_say_why_and_what_they_depend_on(model, tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", *QUESTIONS)
    code, out, _ = run(capsys, model, data, "--metric", "choice", "--prompt", "Answer with a letter.", "--frames", 5)
    assert code == 0
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["overall"]["value"] == 0.4 and results["overall"]["count"] == 5 and results["failed"] == 0
    assert results["overall"]["low"] == 0.0 and results["overall"]["high"] == 0.8
    assert results["by_kind"]["odd"] == {"value": 0.0, "low": None, "high": None, "count": 1}
    assert results["by_kind"]["colour"]["value"] == 0.5
    assert "| **overall** | 40.0 | 0.0 to 80.0 | 5 |" in out and "| odd | 0.0 |  | 1 |" in out
    assert "frames: 5, fps: 2.0, frame_sampling: 'uniform', prompt: 'Answer with a letter.', sound: 'on'" in out
    assert "failures: 0 of 5 questions, counted in no score" in out
    samples = lines(tmp_path / "out.samples.jsonl")
    assert [(sample["id"], sample["answer"], sample["score"], sample["why"]) for sample in samples] == [
        ("sky", "Blue.", 1, "the answer is the option"),
        ("grass", "It is (B).", 0, "the answer has its letter"),
        ("snow", "A dog", 0, "the answer names no option"),
        ("sun", "The answer is A", 1, "the answer states A"),
        ("rain", "I cannot tell", 0, "the answer names no option"),
    ]
    assert samples[0]["question"].startswith("Which colour has the sky?") and samples[0]["where"] == f"{data}:1"
    assert samples[0]["right"] == ["blue"] and samples[0]["options"] == ["green", "blue"]
    assert Scripted.asked[0].messages[-1].content[-1] == "\nAnswer with a letter."


def test_a_killed_evaluation_asks_nothing_twice(model, tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", *QUESTIONS)
    flags = ("--metric", "choice", "--rows", 1)
    Scripted.patience = 3
    assert run(capsys, model, data, *flags)[0] == 130
    with open(tmp_path / "out.answers.jsonl", "a") as log:
        log.write('{"question": 3, "answ')  # the kill came while it wrote
    Scripted.patience = 1000
    assert run(capsys, model, data, *flags)[0] == 0
    assert [question.where for question in Scripted.asked] == [f"{data}:{line}" for line in range(1, 6)]
    whole = (tmp_path / "out.json").read_text()
    assert run(capsys, model, data, *flags, "--metric", "exact")[0] == 0  # only scores again
    assert len(Scripted.asked) == 5 and json.loads((tmp_path / "out.json").read_text())["metric"] == "exact"
    run(capsys, model, data, *flags)
    assert {**json.loads(whole), "seconds": 0} == {**json.loads((tmp_path / "out.json").read_text()), "seconds": 0}
    write(data, *QUESTIONS[:3], ask("sea", "B"), ask("sun", "A"))
    code, out, err = run(capsys, model, data, *flags)
    assert (code, out) == (2, "") and err == (
        f"omnivinci evaluate: {tmp_path}/out.answers.jsonl: has answers to other questions: delete it, or give another "
        "--out\n"
    )
    write(data, *QUESTIONS)
    _, _, err = run(capsys, model, data, *flags, "--drop", "sound")
    assert "out.answers.jsonl: has answers for sound = 'on', not 'off': delete it" in err and len(err.splitlines()) == 1
    (tmp_path / "out.answers.jsonl").write_text("[1]\n")
    assert "out.answers.jsonl: is no file of answers: delete it" in run(capsys, model, data, *flags)[2]


def test_failures_are_shown_and_counted_in_no_score(model, tmp_path, capsys):
    sound = {"type": "audio", "audio": "none.wav"}
    unheard = {**ask("sky", "B"), "messages": [{"role": "user", "content": [sound]}]}
    empty = ask("sky", " ")
    neither = ask("sky", "red")
    data = write(tmp_path / "data.jsonl", *QUESTIONS[:2], unheard, empty, neither)
    code, out, err = run(capsys, model, data, "--metric", "choice")
    assert (code, out) == (2, "") and "2 of 5 samples cannot be used, more than max_skipped = 0.01 allows" in err
    assert f"{data}:4: 'answer' is ' ': give the right answer as a text" in err
    assert f"{data}:5: the answer 'red' is none of the options ['green', 'blue']" in err
    code, out, _ = run(capsys, model, data, "--metric", "choice", "--max_skipped", 0.03)
    assert code == 0 and "failures: 3 of 5 questions" in out and f"{tmp_path}/none.wav: no such file" in out
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["overall"]["value"] == 0.5 and results["overall"]["count"] == 2 and len(results["failures"]) == 3
    samples = lines(tmp_path / "out.samples.jsonl")
    assert ["error" in sample for sample in samples] == [False, False, True, True, True]
    asked = len(Scripted.asked)  # a failed question is asked again
    soundfile.write(tmp_path / "none.wav", np.zeros(1600), 16000)
    code, out, _ = run(capsys, model, data, "--metric", "choice", "--max_skipped", 0.03)
    assert "failures: 2 of 5" in out and len(Scripted.asked) == asked + 1
    (tmp_path / "out.answers.jsonl").unlink()
    code, out, err = run(capsys, model, write(data, empty), "--metric", "exact", "--max_skipped", 1)
    assert (code, out) == (2, "") and f"no question could be scored: {data}:1: 'answer' is ' '" in err


def test_flags_of_other_metrics_are_refused(model, tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", *QUESTIONS)
    for flags in (("--prompt", "x"), ("--frames", 4), ("--mmau", "x.json")):
        code, _, err = run(capsys, model, data, *flags)
        assert code == 2 and f"{flags[0]} belongs to metrics of generated answers: add --metric" in err
    _, _, err = run(capsys, model, data, "--metric", "exact", "--frames", 0)
    assert err == "omnivinci evaluate: --frames is 0: it must be 1 or more\n"
    (model / "params").rmdir()
    assert f"{model}: has no params: give a model directory" in run(capsys, model, data, "--metric", "exact")[2]


def test_answers_for_the_scorers_of_mmar_and_mmau(model, tmp_path, capsys):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(1600), 16000)
    mmar = {"id": "1", "audio_path": "./a.wav", "question": "Which sky?", "choices": ["Green.", "Blue."],
            "answer": "Blue.", "modality": "sound", "language": "en"}  # fmt: skip
    mmau = {"id": "2", "audio_id": "b.wav", "question": "Which grass?", "choices": ["(A) Green", "(B) Blue"],
            "answer": "(A) Green", "task": "sound"}  # fmt: skip
    unheard = {**mmau, "audio_id": "c.wav"}
    data = tmp_path / "data.json"
    data.write_text(json.dumps([mmar, mmau, unheard]))
    files = ("--mmar", tmp_path / "mmar.json", "--mmau", tmp_path / "mmau.json", "--max_skipped", 0.01)
    assert run(capsys, model, data, "--metric", "string_match", *files)[0] == 0
    assert json.loads((tmp_path / "mmar.json").read_text()) == [
        {**mmar, "answer_prediction": "Blue."}, {**mmau, "answer_prediction": "It is (B)."}, unheard,
    ]  # fmt: skip
    second = json.loads((tmp_path / "mmau.json").read_text())[1]
    assert second["model_prediction"] == second["model_output"] == "It is (B)."
    item, text = Scripted.asked[0].messages[0].content
    assert item == Media("sound", str(tmp_path / "a.wav")) and text == "Which sky?\n(A) Green.\n(B) Blue."
    assert Scripted.asked[1].messages[0].content[1] == "Which grass?\n(A) Green\n(B) Blue"
    assert [sample.get("score") for sample in lines(tmp_path / "out.samples.jsonl")] == [1, 0, None]


def test_answers_of_another_program_are_scored_without_a_model(tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", *QUESTIONS)
    said = [{"id": word, "answer": f" {answer}\n"} for word, answer in SAID.items()]
    answers = write(tmp_path / "said.jsonl", *reversed(said))

    def score(*flags: object) -> tuple[int, str, str]:
        command = ["--data", data, "--out", tmp_path / "out.json", "--metric", "choice", "--answers", answers, *flags]
        return cli.main(["evaluate", *map(str, command)]), *capsys.readouterr()

    assert score()[0] == 0
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["overall"]["value"] == 0.4 and results["settings"]["answers"] == str(answers)
    assert [sample["answer"] for sample in lines(tmp_path / "out.samples.jsonl")] == list(SAID.values())
    write(answers, *said[1:])
    _, out, _ = score("--max_skipped", 0.01)
    assert f"failures: 1 of 5 questions, counted in no score\n  {data}:1: {answers} has no answer to 'sky'" in out
    for line, problem in (
        ({"id": "sea", "answer": "A"}, "said.jsonl:1: answers 'sea', which is no question of the data file"),
        ({"id": "sun", "answer": "A"}, "said.jsonl:4: answers 'sun' a second time"),
        ({"id": "sky", "answer": 1}, 'said.jsonl:1: give {"id": ..., "answer": "..."}, one a line'),
    ):
        write(answers, line, *said[1:])
        code, out, err = score()
        assert (code, out) == (2, "") and problem in err and len(err.splitlines()) == 1
    assert "--prompt is for asking a model: omit it, or --answers" in score("--prompt", "x")[2]
    assert "--drop is for asking a model" in score("--drop", "sound")[2]
    assert "--metric likelihood is for asking a model" in score("--metric", "likelihood")[2]
    assert "give --model DIR, or --answers FILE" in score("--model", tmp_path)[2]
    write(data, *QUESTIONS, ask("sun", "A"))
    assert f"{data}:6: --answers needs an id of its own in each question" in score()[2]


def test_a_model_generates_and_chooses(tmp_path, capsys):
    assistant = tiny_assistant()
    folder = tmp_path / "model"
    model_dir.save(folder, assistant.model.config, assistant.params, assistant.processor.tokenizer)
    data = write(tmp_path / "data.jsonl", ask("sky", "B"), ask("grass", "green"))
    asked = [record["messages"] for record in lines(data)]
    assert run(capsys, folder, data, "--metric", "exact", "--max_new_tokens", 5)[0] == 0
    for messages, sample in zip(asked, lines(tmp_path / "out.samples.jsonl"), strict=True):
        assert sample["answer"] == assistant.generate(messages, max_new_tokens=5).text.strip()
    code, _, err = run(capsys, folder, data, "--metric", "likelihood", "--max_new_tokens", 5)
    assert code == 2 and "has answers for answer = 'generated, greedy', not 'likeliest option'" in err
    (tmp_path / "out.answers.jsonl").unlink()
    run(capsys, folder, data, "--metric", "likelihood")
    for messages, options, sample in zip(
        asked, (["A", "B"], ["green", "blue"]), lines(tmp_path / "out.samples.jsonl"), strict=True
    ):
        scores = assistant.score(messages, options)
        assert sample["logprobs"] == pytest.approx(dict(zip(options, scores, strict=True)), abs=1e-3)
        assert sample["answer"] == options[int(np.argmax(scores))]
        assert sample["why"] == f"{sample['answer']} is the likeliest option"
