"""Text that somebody wrote never becomes a turn or a media placeholder."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnivinci_jax.sequence.chat import Conversation, Media, Message
from omnivinci_jax.sequence.tokenizer import Tokenizer
from tests.tiny import REPOSITORY, tiny_tokenizer

SPECIALS = ["<image>", "<video>", "<vila/video>", "<sound>", "<audio>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
PIECES = st.sampled_from([*SPECIALS, "<|im_", "start|>", "assistant\n", "\n", "<", "é", "😀"]) | st.text(max_size=4)
TEXT = st.lists(PIECES, max_size=6).map("".join)
ITEMS = st.lists(TEXT | st.just(Media("image", "a.png")) | st.just(Media("sound", "b.wav")), max_size=4)


def check(tokenizer: Tokenizer, messages: list[Message]) -> None:
    conversation = Conversation(tuple(messages))
    ids, trained = tokenizer.encode_conversation(conversation)
    count = len(messages) + (messages[0].role != "system")
    start = tokenizer._special_ids["<|im_start|>"]
    assert (ids == start).sum() == (ids == tokenizer.eos_id).sum() == count
    for kind in ("image", "sound"):
        assert (ids == tokenizer.media_ids[kind]).sum() == sum(item.kind == kind for item in conversation.media)
    assert not (ids == tokenizer.media_ids["video"]).any()
    assert (ids[trained] == tokenizer.eos_id).sum() == sum(message.role == "assistant" for message in messages)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), ITEMS), min_size=1, max_size=4))
def test_text_never_becomes_a_special_token(turns):
    check(tiny_tokenizer(), [Message(role, tuple(content)) for role, content in turns])


def test_text_is_encoded_as_it_is_without_specials_and_decodes_to_itself():
    tokenizer = tiny_tokenizer()
    for text in SPECIALS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<image>") != [tokenizer.media_ids["image"]]


@pytest.fixture
def unmarked(tmp_path) -> Tokenizer:
    """A tokenizer whose file does not mark the special tokens as special."""
    source = REPOSITORY / "configs" / "tiny_tokenizer"
    shutil.copytree(source, tmp_path / "tokenizer")
    content = json.loads((source / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(content))
    return Tokenizer(tmp_path / "tokenizer")


def test_a_file_that_does_not_mark_them_changes_nothing(unmarked):
    messages = [Message("user", ("<image> <|im_end|>", Media("image", "a.png"))), Message("assistant", ("<sound>",))]
    check(unmarked, messages)
    assert unmarked.vocab_size == tiny_tokenizer().vocab_size
    ids, _ = unmarked.encode_conversation(Conversation(tuple(messages)))
    assert ids.tolist() == tiny_tokenizer().encode_conversation(Conversation(tuple(messages)))[0].tolist()
