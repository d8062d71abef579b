"""CoVoST 2's splits and multiple-choice questions: what becomes of them, and what is refused."""

import json

import pytest

from omnivinci_jax.cli import main
from omnivinci_jax.downstream.choices import instruction


@pytest.fixture
def refused(capsys):
    def refused(*arguments) -> str:
        assert main(["convert-data", *map(str, arguments)]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    return refused


HEADER = "path\tsentence\ttranslation\tclient_id\n"


@pytest.fixture
def covost(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp3").touch()

    def write(text: str, name: str = "covost_v2.en_zh-CN.test.tsv"):
        (tmp_path / name).write_text(text)
        return "covost2", tmp_path / name, f"--clips={tmp_path / 'clips'}", f"--out={tmp_path}"

    return write


def test_a_split_becomes_questions_about_its_clips(covost, tmp_path):
    arguments = covost(HEADER + 'a.mp3\tHe said "go.\t他说：“走。\tx\n')
    assert main(["convert-data", *map(str, arguments)]) == 0
    row = json.loads((tmp_path / "en_zh-CN.test.jsonl").read_text())
    audio, text = row["messages"][0]["content"]
    assert audio == {"type": "audio", "audio": str(tmp_path / "clips" / "a.mp3")}
    assert text["text"] == "Translate the speech from English to Chinese."
    assert row["messages"][1]["content"] == "他说：“走。"
    assert row["kind"] == "en_zh-CN" and row["transcript"] == 'He said "go.'


def test_other_splits_are_refused_in_one_line(covost, refused):
    line = "a.mp3\tHi.\tHallo.\tx\n"
    assert "covost_v2.SOURCE_TARGET.SPLIT.tsv" in refused(*covost(HEADER + line, "en_de.tsv"))
    assert "unknown language 'fr'" in refused(*covost(HEADER + line, "covost_v2.fr_en.dev.tsv"))
    assert "to or from English" in refused(*covost(HEADER + line, "covost_v2.de_ja.dev.tsv"))
    assert "tsv:1: no column translation; it has path, sentence" in refused(*covost("path\tsentence\na\tb\n"))
    assert "tsv:1: no column path; it has none" in refused(*covost(""))
    assert "tsv:3: 3 cells, but the header has 4" in refused(*covost(HEADER + line + "a.mp3\tHi.\tHallo.\n"))
    assert "tsv:2: an empty translation" in refused(*covost(HEADER + "a.mp3\tHi.\t\tx\n"))
    assert "b.mp3: no such clip" in refused(*covost(HEADER + line.replace("a.mp3", "b.mp3")))
    assert "no clips after the header" in refused(*covost(HEADER))
    arguments = covost(HEADER + line)
    arguments[1].unlink()
    assert "cannot be read: No such file" in refused(*arguments)
    arguments[1].write_bytes(b"\xff\xfe")
    assert "not UTF-8 at byte 0" in refused(*arguments)


ITEM = {
    "video": "a.mp4",
    "question": "Who serves?",
    "options": ["Federer", "Benneteau", "neither"],
    "answer": "B",
    "category": "server",
    "system": "Federer is the player in the white polo T-shirt.",
}


@pytest.fixture
def choices(tmp_path):
    (tmp_path / "a.mp4").touch()

    def write(*items):
        (tmp_path / "q.json").write_text(json.dumps(items))
        return "choices", tmp_path / "q.json", f"--videos={tmp_path}", f"--out={tmp_path}"

    return write


def test_a_question_has_the_papers_instruction_and_a_letter_for_an_answer(choices, tmp_path):
    lettered = ITEM | {"options": ["A. Federer", "B. Benneteau", "C. neither"], "answer": "C. neither", "system": ""}
    by_letter = ITEM | {"options": {"A": "Federer", "B": "Benneteau"}, "answer": "Federer"}
    assert main(["convert-data", *map(str, choices(ITEM, lettered, by_letter))]) == 0
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    system, user, answer = rows[0]["messages"]
    assert system == {"role": "system", "content": ITEM["system"]}
    assert user["content"][0] == {"type": "video", "video": str(tmp_path / "a.mp4")}
    assert user["content"][1]["text"] == (
        "You will be asked multi-choice questions. Your replies must contain only a single letter (either A, B, C, D). "
        "Who serves? A. Federer B. Benneteau C. neither"
    )
    assert answer["content"] == "B" and rows[0]["kind"] == "server" and rows[0]["options"] == ITEM["options"]
    assert rows[1]["messages"][0] == user and rows[1]["messages"][1]["content"] == "C"
    assert rows[2]["messages"][2]["content"] == "A"
    assert instruction(5).endswith("(either A, B, C, D, E).")


def test_other_questions_are_refused_in_one_line(choices, refused, tmp_path):
    def wrong(**changes) -> str:
        return refused(*choices(ITEM, ITEM | changes))

    assert "q.json: item 1: the answer 'D' is neither a letter of A, B, C nor an option" in wrong(answer="D")
    assert "the answer 'AB' is neither" in wrong(answer="AB")
    assert "item 1: question is None, not a text; it has video" in wrong(question=None)
    assert "item 1: options are a list of 2 to 26 texts" in wrong(options=["one"])
    assert "item 1: options are a list of 2 to 26 texts" in wrong(options={"A": "x", "C": "y"})
    assert "item 1: an option is empty or not a text" in wrong(options=["x", ""])
    assert "b.mp4: no such video" in wrong(video="b.mp4")
    assert "unknown category 'golf'; known are server, winner" in refused(
        *choices(ITEM | {"category": "golf"}), "--categories=server,winner"
    )
    assert "item 0: a question is a JSON object, not int" in refused(*choices(1))
    assert "q.json: not a list of questions" in refused(*choices())
    arguments = choices(ITEM)
    (tmp_path / "q.json").write_text("{")
    assert "q.json: not JSON" in refused(*arguments)
