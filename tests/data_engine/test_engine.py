"""The data engine through its command, with a server that answers and fails."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from omnivinci_jax.cli import main
from omnivinci_jax.data.check import check_file
from omnivinci_jax.data.processor import MediaReader
from omnivinci_jax.data.questions import read_question
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.data.write_shards import write_shards
from omnivinci_jax.data_engine.output import FILES
from tests.data_engine.conftest import ROLES
from tests.tiny import REPOSITORY, tiny_config

SEGMENTS, CLIPS, AUDIBLE = 7, 14, 7


def read(out: Path) -> dict[str, list[dict]]:
    return {name: [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()] for name in FILES}


def test_a_folder_of_videos_becomes_conversations(server, flags, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*flags, "--out", str(out)]) == 0
    made = read(out)
    assert [len(made[name]) for name in FILES] == [SEGMENTS, 3 * SEGMENTS, SEGMENTS, 1]
    assert made["errors"][0]["stage"] == "probe" and "broken.mp4" in made["errors"][0]["reason"]
    assert {row["reason"] for row in made["dropped"]} == {"answered without the media"}
    assert [server.asked(role) for role in ROLES[:4]] == [CLIPS, AUDIBLE, SEGMENTS, SEGMENTS]

    # Each segment's caption tells the grey level that its pictures have.
    levels = [40, 50, 80, 90, 100, 120, 130]
    for caption, level in zip(made["captions"], levels, strict=True):
        video, asked = caption["messages"][0]["content"]
        assert f"The 2 pictures show a wall with a grey level of {level} " in caption["messages"][1]["content"]
        assert (out / video["video"]).is_file() and asked["text"] and caption["kind"] == "caption"
    assert [(row["source"], row["start"], row["end"]) for row in made["captions"][:3]] == [
        ("a.mp4", 0.0, 2.0), ("a.mp4", 2.0, pytest.approx(4, abs=0.1)), ("b.mp4", 0.0, 2.0),
    ]  # fmt: skip

    # A question about what is heard is answered from the sound where there is one.
    needs = [[row["needs"] for row in made["questions"][3 * index : 3 * index + 3]] for index in range(SEGMENTS)]
    heard = [["sight", "sound", "both"]] * 4 + [["sight", "both", "both"]] * 3
    assert needs == heard
    question = made["questions"][0]
    assert question["provenance"]["models"] == {role: role for role in ROLES}
    assert question["provenance"]["prompts"]["judge"].startswith("1 ")
    assert question["messages"][1]["content"] == f"<think>It is a bell.</think><answer>{question['answer']}</answer>"
    assert sorted(question["options"]) == ["a copper bell", "a paper bag", "a silver coin", "a wooden box"]
    letters = Counter(row["answer"] for row in made["questions"])
    assert len(letters) == 4 and letters.most_common(1)[0][1] < 12

    table = (out / "report.md").read_text()
    for line in ("| videos | 4 |", "| questions asked | 28 |", "| questions kept | 21 |", "| purpose | 7 |"):
        assert line in table
    page = (out / "report.html").read_text()
    assert page.count("<video") == SEGMENTS and "grey level of 80 and nothing else on it. Right." in page
    assert "A steady tone of 400 hertz" in page

    # The same command asks nothing again, and a changed prompt only what depends on it.
    before = {name: (out / f"{name}.jsonl").read_bytes() for name in FILES}
    count = len(server.requests)
    assert main([*flags, "--out", str(out)]) == 0
    assert len(server.requests) == count
    assert {name: (out / f"{name}.jsonl").read_bytes() for name in FILES} == before
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "questions.txt").write_text("version: mine\nWrite $count hard questions about: $caption")
    assert main([*flags, "--out", str(out), f"--config.prompts={prompts}"]) == 0
    new = Counter(body["model"] for body in server.requests[count:])
    assert new == {"questioner": SEGMENTS}  # it asks the same, so the judge has nothing new
    assert read(out)["captions"][0]["provenance"]["prompts"]["questions"].startswith("mine ")
    capsys.readouterr()
    assert main([*flags, "--out", str(out), "--dry_run", "--config.vision.prompt_price=10"]) == 0
    estimate = capsys.readouterr().out
    assert "3 videos, 0.00 hours" in estimate and f"{SEGMENTS} segments, {CLIPS} clips" in estimate
    assert f"| vision | vision | {CLIPS} | {CLIPS * 100:,} | {CLIPS * 10} | 0.01 |" in estimate

    # Training, GRPO and shards read the files as they are.
    for name in ("captions", "questions"):
        count, problems = check_file(out / f"{name}.jsonl", MediaReader(tiny_config()))
        assert count == len(made[name]) and problems == []
    data = Jsonl(out / "questions.jsonl")
    for entry in data.entries():
        record = data.record(entry)
        assert read_question(record, "here").is_right(record["answer"])
    shards = write_shards(out / "questions.jsonl", tmp_path / "shards", 100, 1, "default", 0.0)
    assert shards["conversations"] == 3 * SEGMENTS


def test_results_among_the_videos_are_refused(flags, videos, capsys):
    assert main([*flags, "--out", str(videos / "out")]) == 2
    assert "is inside --videos" in capsys.readouterr().err and not (videos / "out").exists()


def test_failures_that_pass_change_no_row(server, flags, calm, tmp_path):
    faults, seen = ["429", "500", "garbage", "half", "no choices"], Counter()

    def fault(body: dict) -> str | None:
        # Every request fails once or twice, each in its own way; one does not answer in time.
        key = json.dumps(body)
        seen[key] += 1
        if len(seen) == 5 and seen[key] == 1:
            return "never"
        return faults[(len(key) + seen[key]) % len(faults)] if seen[key] <= 1 + len(key) % 2 else None

    server.fault = fault
    patience = [f"--config.{role}.{name}" for role in ROLES for name in ("timeout=5.0", "retries=8")]
    assert main([*flags, *patience, "--out", str(tmp_path)]) == 0
    assert read(tmp_path) == read(calm[0])


def test_lasting_failures_are_error_rows_until_the_server_is_back(server, flags, tmp_path):
    def fault(body: dict) -> str | None:
        text = json.dumps(body["messages"])
        if body["model"] == "corrector" and any(f"grey level of {level} " in text for level in (40, 50)):
            return "half an answer"
        if body["model"] == "questioner" and any(f"grey level of {level} " in text for level in (80, 90, 100)):
            return "400"
        return "500" if body["model"] == "questioner" else None

    server.fault, out = fault, tmp_path / "out"
    assert main([*flags, "--out", str(out)]) == 1
    made = read(out)
    described = {(row["source"], row["stage"]): row["reason"].replace(server.url, "URL") for row in made["errors"]}
    assert made["captions"] == [] and len(made["errors"]) == SEGMENTS + 1
    assert described["a.mp4", "correct"].startswith("the answer is not JSON, or only a part of it")
    url = "URL/v1/chat/completions"
    assert described["b.mp4", "ask_questions"] == f'{url}: 400 Bad Request: {{"error": "no"}}'
    assert described["more/c.mp4", "ask_questions"].startswith(f"{url}: 4 tries, the last: 500 Internal Server Error")
    asked = server.asked("corrector")
    assert asked == SEGMENTS + 2  # both segments of a.mp4 were asked for again, once

    server.fault = lambda body: None
    assert main([*flags, "--out", str(out)]) == 0
    made = read(out)
    assert server.asked("corrector") == asked  # a bad answer is a result
    assert [row["source"] for row in made["captions"]] == ["b.mp4"] * 3 + ["more/c.mp4"] * 2
    assert {row["source"] for row in made["errors"]} == {"a.mp4", "broken.mp4"}


def test_a_bad_answer_is_repaired_once(server, flags, tmp_path):
    cut = set()

    def fault(body: dict) -> str | None:
        key = json.dumps(body["messages"])
        if body["model"] != "corrector" or "You have answered this before" in key:
            return None
        cut.add(key)
        return "half an answer"

    server.fault = fault
    assert main([*flags, "--out", str(tmp_path)]) == 0
    assert len(cut) == SEGMENTS == len(read(tmp_path)["captions"])
    assert server.asked("corrector") == 2 * SEGMENTS


def test_the_budget_stops_a_run_and_a_higher_one_goes_on(server, flags, calm, tmp_path, capsys):
    price = [f"--config.{role}.answer_price=1000" for role in ROLES]  # a cent for each answer
    one_at_a_time = [f"--config.{role}.concurrency=1" for role in ROLES]
    arguments = [*flags, *price, *one_at_a_time, "--out", str(tmp_path)]
    assert main([*arguments, "--config.budget=0.2"]) == 2
    assert "the budget is spent: $0.2" in capsys.readouterr().err
    assert 20 <= len(server.requests) <= 24 and not (tmp_path / "captions.jsonl").exists()
    assert main([*arguments, "--config.budget=100"]) == 0
    assert read(tmp_path) == read(calm[0])
    assert (
        sorted(map(json.dumps, server.requests)) == calm[1]
    )  # those on their way when it stopped were answered and stored


def test_a_killed_engine_repeats_nothing(server, flags, calm, tmp_path):
    """OMNIVINCI_KILLS sets how often it is killed."""
    (undisturbed, requests), kills = calm, int(os.environ.get("OMNIVINCI_KILLS", "3"))
    server.seconds, drawn = 0.05 if kills < 10 else 0.2, random.Random(0)
    slow = [f"--config.{role}.concurrency=2" for role in ROLES] + ["--config.rows=2"]
    command = [sys.executable, "-m", "omnivinci_jax.cli", *flags, *slow, "--out", str(tmp_path)]
    for _ in range(kills):
        before = len(server.requests)
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            wanted = before + drawn.randrange(len(requests) // (kills + 1))
            while len(server.requests) <= wanted and process.poll() is None:
                time.sleep(0.002)
            time.sleep(drawn.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert not any(tmp_path.glob("*.jsonl"))
    assert main([*flags, *slow, "--out", str(tmp_path)]) == 0
    assert read(tmp_path) == read(undisturbed)
    assert set(map(json.dumps, server.requests)) == set(requests)
    # Only what ran when it was killed is asked again: two requests of each role.
    assert len(server.requests) <= len(requests) + kills * 2 * len(ROLES)
    names = [sorted(path.name for path in (folder / "clips").rglob("*.*")) for folder in (undisturbed, tmp_path)]
    assert len(names[0]) == SEGMENTS and names[0] == names[1]
