"""Messages fit on a line of any terminal, whatever they quote."""

import os

from omnivinci_jax.errors import DataError, MediaError, UserError, describe, describe_at, printable


def test_messages_can_always_be_printed():
    latin = os.fsdecode(b"caf\xe9.png")
    assert str(MediaError(f"{latin}: no such file")) == "caf\\udce9.png: no such file"
    assert str(UserError("a\x1b[2J\0\tb")) == "a\\x1b[2J\\x00\\x09b"
    assert str(DataError("two problems:\n  one\n  two")) == "two problems:\n  one\n  two"
    assert printable("é → 😀") == "é → 😀"


def test_long_lines_are_cut_in_the_middle():
    message = str(UserError(f"x.jsonl:3: {'A' * 11_000}: no such file\n  short"))
    first, second = message.split("\n")
    assert len(first) < 1000 and first.startswith("x.jsonl:3: AAA") and first.endswith("AAA: no such file")
    assert second == "  short"


def test_what_a_sample_raised_is_one_line_with_its_place():
    assert describe(TypeError("a\n  b\ud83d")) == "TypeError: a b\\ud83d"
    assert describe_at("x.jsonl:3", KeyError("a")) == "x.jsonl:3: KeyError: 'a'"
    assert describe_at("x.jsonl:3", DataError("x.jsonl:3: bad")) == "x.jsonl:3: bad"
    assert describe_at("x.jsonl:3", MediaError("a.png: bad")) == "x.jsonl:3: a.png: bad"
