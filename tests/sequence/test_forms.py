"""Published forms of conversations, keys that nothing reads, and the names of media files."""

import base64
import os
from pathlib import Path

import pytest

from omnivinci_jax.errors import DataError
from omnivinci_jax.sequence.chat import Conversation, Inline, Media, Message
from omnivinci_jax.sequence.forms import parse_conversation
from omnivinci_jax.sequence.unused import check_unused

A, B = Media("image", "/data/a.png"), Media("image", "/data/b.png")
VIDEO, SOUND = Media("video", "/data/c.mp4"), Media("sound", "/data/d.wav")
ANSWER = {"role": "assistant", "content": "red"}


def parse(record: object) -> Conversation:
    return parse_conversation(record, "x.jsonl:3", Path("/data"))


def user(record: dict) -> list:
    """The content of the first user message."""
    return list(next(message.content for message in parse(record).messages if message.role == "user"))


def error(record: object) -> str:
    with pytest.raises(DataError) as raised:
        parse(record)
    message = str(raised.value)
    assert message.startswith("x.jsonl:3: ") and "\n" not in message and len(message) < 400
    return message


def asked(content, **keys) -> dict:
    return {"messages": [{"role": "user", "content": content}, ANSWER], **keys}


def test_lists_fill_placeholders_in_order_or_come_first():
    record = asked("<image>Who? <video>And <image><audio>", images=["a.png", "b.png"], videos=["c.mp4"], audios="d.wav")
    assert user(record) == [A, "Who? ", VIDEO, "And ", B, SOUND]
    assert user(asked("Who?", audios=["d.wav"], images=["a.png", {"path": "b.png"}])) == [A, B, SOUND, "Who?"]
    assert user(asked("<video>\nWho?", videos=["c.mp4"], image="a.png")) == [A, VIDEO, "\nWho?"]
    items = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}]  # as in TRL
    assert user(asked(items, images=["a.png", "b.png"])) == [A, "or", B]
    turns = [{"from": "human", "value": "<audio>\nWho? <sound>"}, {"from": "gpt", "value": "<image>"}]
    spoken = parse({"conversations": turns, "audios": ["d.wav", "d.wav"]})
    assert spoken.messages == (Message("user", (SOUND, "Who? ", SOUND)), Message("assistant", ("<image>",)))


def test_every_form_gives_the_same_conversation():
    expected = parse(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Who?"}]},
                {"role": "assistant", "content": "Ann"},
                {"role": "user", "content": "Where?\nHere?"},
                {"role": "assistant", "content": "there"},
            ]
        }
    )
    texts = ["<image>Who?", "Ann", "Where?\nHere?", "there"]
    roles = ["user", "assistant"] * 2
    sharegpt = [{"from": name, "value": text} for name, text in zip(["human", "gpt"] * 2, texts, strict=True)]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    openai = [{"type": "image_url", "image_url": {"url": "file:///data/a.png"}}, {"type": "text", "text": "Who?"}]
    shared = {"system": "Be brief.", "images": ["a.png"]}
    forms = [
        {"messages": messages, **shared},
        {"conversations": sharegpt, **shared},
        {"conversation": [{"human": q, "assistant": a} for q, a in (texts[:2], texts[2:])], **shared},
        {"query": texts[2], "response": texts[3], "history": [texts[:2]], **shared},
        {"instruction": "Where?", "input": "Here?", "output": "there", "history": [texts[:2]], **shared},
        {"messages": [{"role": "user", "content": openai}, *messages[1:]], "system": "Be brief."},
    ]
    for form in forms:
        assert parse(form) == expected, form


def test_files_without_a_place_of_their_own_are_errors():
    assert "2 <image> in the text but 1 image path(s)" in error(asked("<image><image>", images=["a.png"]))
    assert "1 <video> in the text but 0 video path(s)" in error(asked("<video>", images=["a.png"]))
    assert "'images' must be a path or a list of paths" in error(asked("x", images=[["a.png", "b.png"]]))
    item = [{"type": "image", "image": "a.png"}]
    assert "images are given both in a list and as items with a path" in error(asked(item, images=["a.png"]))
    answer_alone = {"messages": [ANSWER], "images": ["a.png"]}
    assert "no user message can show them" in error(answer_alone)
    both = {"messages": [{"role": "system", "content": "x"}, ANSWER], "system": "y"}
    assert "has 'system' and a system message" in error(both)
    assert "'loss' of a message is False" in error({"messages": [ANSWER | {"loss": False}]})


def test_a_listed_file_may_name_its_track():
    track = {"path": "c.mp4", "track": 2}
    assert user(asked("<video>Who?", videos=[track])) == [Media("video", "/data/c.mp4", track=2), "Who?"]
    assert user(asked("Who?", audios={"url": "d.wav", "id": 3})) == [SOUND, "Who?"]
    assert '"track" is a sound track of a video or audio, from 1: 0' in error(asked("x", videos=[track | {"track": 0}]))
    assert '"track" is a sound track' in error(asked("x", images=[{"path": "a.png", "track": 1}]))
    assert "'frames' looks like media" in error(asked("x", videos=[track | {"frames": ["1.png"]}]))


def test_text_is_never_refused():
    """Only a user's turn beside lists has placeholders."""
    text = "<image> <video> <vila/video> <sound> <|im_start|>system\n<|im_end|>"
    assert user(asked(text)) == [text]
    assert user(asked([{"type": "text", "text": text}], images=["a.png"])) == [A, text]
    record = asked("<image>Who?", images=["a.png"], system=text)
    record["messages"][1] = {"role": "assistant", "content": text}
    system, _, answer = parse(record).messages
    assert system.content == answer.content == (text,)


@pytest.mark.parametrize(
    "unused",
    [
        {"image_path": "a"}, {"img": "a.png"}, {"videoFile": ["c.mp4"]}, {"frames": ["1", "2"]}, {"clip": {"id": "c"}},
        {"speech": "d.wav"}, {"source_file": "c.webm"}, {"picture": "data:image/png;base64,AA"}, {"files": ["d.MP3"]},
        {"conversations": [{"from": "human", "value": "x"}]}, {"history": [["a", "b"]]}, {"rejected_response": "no"},
        {"tools": '[{"name": "f"}]'}, {"objects": {"bbox": [[1, 2, 3, 4]]}},
    ],
)  # fmt: skip
def test_a_key_that_looks_like_media_or_turns_is_an_error(unused):
    (key,) = unused
    assert f"{key!r} looks like" in error(asked("x", **unused))


def test_unused_keys_in_turns_and_items_are_errors():
    assert "'images' looks like media" in error({"messages": [{"role": "user", "content": "x", "images": ["a.png"]}]})
    assert "'tool_calls' looks like" in error({"messages": [ANSWER | {"tool_calls": [{"name": "f"}]}]})
    assert "'image' looks like media" in error(asked([{"type": "text", "text": "x", "image": "a.png"}]))


def test_harmless_keys_are_kept():
    harmless = {
        "id": "train/000.jpg", "kind": "clip", "image_id": "a.png", "image_size": [640, 480], "video_duration": 3.5,
        "caption": "a dog.png", "solution": "red", "prompt": "x", "answer": "red", "num_frames": 8, "tools": "[]",
        "audios": None, "videos": [], "history": [], "image_caption": "an image", "voice": "alloy", "is_video": True,
    }  # fmt: skip
    assert user(asked("x", **harmless)) == ["x"]
    check_unused(harmless, {"audios", "videos"}, "x.jsonl:3")


def test_a_data_uri_is_a_file():
    content = b"\x89PNG etc."
    encoded = base64.b64encode(content).decode()
    (item, text) = user(asked("x", images=[f"data:image/png;base64,{encoded}"]))
    assert item.stored == Inline(".png", content) and item.path.startswith("data:image/png;sha256=") and text == "x"
    (sound, _) = user(asked("x", audios=["data:audio/wav,a%20b"]))
    assert sound.stored == Inline(".wav", b"a b")
    assert sound.path != user(asked("x", audios=["data:audio/wav,a%20c"]))[0].path
    long = "data:image/png;base64," + "A" * 11_000 + "*"
    assert "a data: URI whose base64 is broken" in error(asked("x", images=[long]))
    assert "a data: URI without data" in error(asked("x", images=["data:image/png;base64,"]))


def test_names_that_are_no_path():
    for url in ("https://a.org/b.png", "s3://bucket/b.png", "HTTP://a.org/b.png"):
        assert f"{url!r}: URLs are not read: download the file and give its path" in error(asked("x", images=[url]))
    assert "'a\\x00b': not a path" in error(asked("x", images=["a\0b"]))
    assert "half of a surrogate pair" in error(asked("x", images=["a\ud83d.png"]))
    assert "not a path" in error(asked("x", images=["iVBORw0KGgo" * 1000]))  # base64 without its header
    latin = os.fsdecode(b"caf\xe9.png")  # a real file name that is not UTF-8
    assert user(asked("x", images=[latin, "file:///e/a%20b.png"]))[:2] == [
        Media("image", f"/data/{latin}"), Media("image", "/e/a b.png")
    ]  # fmt: skip


def test_lone_surrogates_in_text_become_the_replacement_character():
    record = asked("a\ud83d\ud83d\ude00", system="\ude00")
    assert [message.content for message in parse(record).messages] == [("\ufffd",), ("a\ufffd😀",), ("red",)]


def test_a_problem_with_options_and_a_solution():
    problem = {
        "problem_id": 3, "problem": "What do you hear?", "data_type": "image_audio", "problem_type": "multiple choice",
        "options": ["A. rain", "B. a dog"], "solution": "<answer>B</answer>", "data_source": "AVQA",
        "path": {"image": "a.png", "audio": "d.wav"},
    }  # fmt: skip
    asked, answered = parse(problem).messages
    assert asked == Message("user", (A, SOUND, "What do you hear?\nA. rain\nB. a dog"))
    assert answered == Message("assistant", ("<answer>B</answer>",))
    video = {"problem": "How many?", "data_type": "video", "path": "./c.mp4", "solution": "<answer>2</answer>"}
    assert parse(video).messages[0].content == (Media("video", "/data/c.mp4"), "How many?")
    assert len(parse({"problem": "How many?"}).messages) == 1
    assert "'path' must be a file, with 'data_type' image" in error({"problem": "Who?", "path": "c.mp4"})
    assert "'path' must be" in error({"problem": "Who?", "path": {"film": "c.mp4"}})
    assert "'options' a list of texts" in error({"problem": "Who?", "options": "A or B"})
    assert "'video_path' looks like media" in error({"problem": "Who?", "video_path": "c.mp4"})


def test_an_answer_and_options_may_stand_beside_the_messages():
    record = asked("Who?", answer="B", options=["Ann", "Bob"])
    assert parse(record) == parse(asked("Who?"))


def test_videos_without_their_sound():
    muted = Media("video", "/data/c.mp4", muted=True)
    record = asked("<video>Who? <audio>", videos=["c.mp4"], audios=["d.wav"])
    assert user(record | {"use_audio_in_video": False}) == [muted, "Who? ", SOUND]
    assert user(record | {"use_audio_in_video": True}) == user(record) == [VIDEO, "Who? ", SOUND]
    problem = {"problem": "How many?", "data_type": "video", "path": "c.mp4", "use_audio_in_video": False}
    assert user(problem) == [muted, "How many?"]
    assert "'use_audio_in_video' must be true or false: 0" in error(record | {"use_audio_in_video": 0})
