import json
from pathlib import Path

import pytest

from omnivinci_jax.errors import DataError
from omnivinci_jax.sequence.chat import Media, render
from omnivinci_jax.sequence.forms import parse_conversation
from tests.tiny import REPOSITORY, tiny_tokenizer

CHAT = {
    "messages": [
        {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?\n"}]},
        {"role": "assistant", "content": "  red"},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "blue\n\n"},
    ]
}


def parse(record):
    return parse_conversation(record, "x.jsonl:3", Path("/data"))


def test_media_paths_are_relative_to_the_file():
    assert parse(CHAT).media == (Media("video", "/data/a.mp4"),)


def test_text_matches_the_tokenizers_chat_template():
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(REPOSITORY / "configs" / "tiny_tokenizer")
    for record in (CHAT, {"messages": [{"role": "system", "content": "Be brief."}, *CHAT["messages"]]}):
        text = render(parse(record)).text
        assert text == template.apply_chat_template(record["messages"], tokenize=False)
        assert tiny_tokenizer().encode_conversation(parse(record))[0].tolist() == template(text).input_ids
        prompt = render(parse({"messages": record["messages"][:1]}), generate=True)
        assert prompt.text == template.apply_chat_template(
            record["messages"][:1], tokenize=False, add_generation_prompt=True
        )


def test_only_answers_are_trained():
    ids, trained = tiny_tokenizer().encode_conversation(parse(CHAT))
    assert tiny_tokenizer()._tokenizer.decode(ids[trained].tolist(), skip_special_tokens=False) == (
        "  red<|im_end|>blue\n\n<|im_end|>"
    )


def test_both_forms_give_the_same_conversation():
    llava = {
        "video": "a.mp4",
        "image": None,
        "conversations": [
            {"from": "human", "value": "<video>\nWhat?\n"},
            {"from": "gpt", "value": "  red"},
            {"from": "human", "value": "And then?"},
            {"from": "gpt", "value": "blue\n\n"},
        ],
    }
    assert parse(llava) == parse(CHAT)


@pytest.mark.parametrize(
    "record, message",
    [
        ([], "a conversation must be a JSON object, not list"),
        ({}, "has neither 'messages'"),
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "'role' of system, user or assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, 'needs its file as "video": "PATH"'),
        ({"messages": [{"role": "user", "content": [{"type": "smell", "smell": "x"}]}]}, "must be text, image"),
        (
            {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video> and <video>"}]},
            "2 <video> in the text but 1 video path",
        ),
        (
            {"video": 3, "conversations": [{"from": "human", "value": "<video>"}]},
            "'video' must be a path or a list",
        ),
        ({"conversations": [{"from": "robot", "value": "hi"}]}, "'conversations' must be a list of"),
    ],
)
def test_errors_are_one_line_that_starts_with_file_and_line(record, message):
    with pytest.raises(DataError) as error:
        parse(json.loads(json.dumps(record)))
    assert str(error.value).startswith("x.jsonl:3: ")
    assert message in str(error.value) and "\n" not in str(error.value)
