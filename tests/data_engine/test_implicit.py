"""The converter of published video questions, which keeps the sound of their videos."""

import json
from pathlib import Path

from omnivinci_jax.cli import main
from omnivinci_jax.data.records import Jsonl


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_published_questions_keep_the_sound_of_their_videos(videos, tmp_path, capsys):
    def ask(text: str) -> list[dict]:
        return [{"from": "human", "value": text}, {"from": "gpt", "value": "A tone."}]

    records = [
        {"id": "llava", "conversations": ask("<image>\nWhat is heard?"), "data_source": "x", "video": "a.mp4"},
        {"id": "sharegpt", "conversations": ask("What is <image>?<video>"), "videos": ["b.mp4"]},
        {"conversations": ask("<video>What is <b>?"), "videos": ["b.mp4"], "answer": "a tone"},
        {"conversations": ask("<video>\nWhat is seen?"), "video": "more/c.mp4"},
        {"conversations": ask("<image>\nWhat?"), "video": "broken.mp4"},
        {"conversations": ask("<image>\nWhat?"), "video": "none.mp4"},
        {"conversations": ask("What is one and one?")},
    ]
    (tmp_path / "questions.json").write_text(json.dumps(records))
    command = ["data-engine", "--questions", str(tmp_path / "questions.json"), "--videos", str(videos)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed, out = capsys.readouterr().out, tmp_path / "out"
    assert "| with_sound | 2 |" in printed and "| without_sound | 1 |" in printed and "| skipped | 4 |" in printed

    first, second = lines(out / "with_sound.jsonl")
    assert first["id"] == "llava" and first["data_source"] == "x" and second["answer"] == "a tone"
    video, text = first["messages"][0]["content"]
    assert (out / video["video"]).samefile(videos / "a.mp4") and text == {"type": "text", "text": "What is heard?"}
    assert first["messages"][1] == {"role": "assistant", "content": "A tone."}
    assert second["messages"][0]["content"][1]["text"] == "What is <b>?"
    data = Jsonl(out / "with_sound.jsonl")
    assert [data.conversation(entry).media[0].kind for entry in data.entries()] == ["video", "video"]
    assert [row["messages"][0]["content"][1]["text"] for row in lines(out / "without_sound.jsonl")] == ["What is seen?"]

    skipped = {row["reason"].split(": ", 1)[-1] for row in lines(out / "skipped.jsonl")}
    unreadable = "its video cannot be read; sounds.jsonl says why"
    assert skipped >= {unreadable, "is not about a video"} and any("2 <video> in the text" in row for row in skipped)

    sounds = {row.pop("source"): row for row in lines(out / "sounds.jsonl")}
    assert sounds["a.mp4"] == {"content": "steady", "seconds": 4.0, "audible_seconds": 4, "loudest_db": -9}
    assert sounds["b.mp4"]["audible_seconds"] == 3 and sounds["more/c.mp4"] == {"content": "none", "seconds": 4.0}
    assert sounds["broken.mp4"]["content"] == "unreadable" and "No such file" in sounds["none.mp4"]["reason"]
    assert "| steady | 2 | music, noise or a hum" in (out / "sound.md").read_text()
