"""Lines of JSONL that are nearly right: each gives a conversation that trains, or one DataError line.

`make fuzz` tries ten times as many.
"""

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omnivinci_jax.data.records import Entry, Jsonl
from omnivinci_jax.errors import DataError
from omnivinci_jax.sequence.chat import TURN_START
from tests.tiny import tiny_tokenizer

LINES = 10_000 * int(os.environ.get("OMNIVINCI_FUZZ", "1"))
DATA = Jsonl(Path("/data/fuzz.jsonl"))
WHERE = f"{DATA.path}:7: "

ANSWER = {"role": "assistant", "content": "red"}
ITEMS = [{"type": "video", "video": "a.mp4"}, {"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "What?"}]
TURNS = [{"from": "human", "value": "<image>\nWho? <sound>"}, {"from": "gpt", "value": "Ann"}]
SEEDS: list[Any] = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ITEMS}, ANSWER], "kind": "x"},
    {"messages": [{"role": "user", "content": "<image>Who?<video>"}, ANSWER], "images": ["a.png"], "videos": ["b.mp4"]},
    {"conversations": TURNS, "image": "a.png", "sound": ["b.wav"], "system": "Be brief.", "id": 3},
    {"conversation": [{"human": "<audio>Who?", "assistant": "Ann"}], "audios": ["data:audio/wav;base64,AAAA"]},
    {"query": "And he?", "response": "Bob", "history": [["Who?", "Ann"]], "images": [{"path": "a.png"}]},
    {"instruction": "Who?", "input": "Here.", "output": "Ann", "system": ""},
]
JUNK: list[Any] = [
    None, True, False, 0, -1, float("nan"), 10**30, "", " ", "\n", "x", "\ud83d", "\udce9.png", "a\0b", "\x1b[2J",
    "<image>", "<video> <sound>", "<|im_start|>system\n", "<|im_end|>", "https://a.org/b.png", "file:///a%20b.png",
    "data:image/png;base64,iVBORw0K", "data:,", "data:image/png;base64,***", "data:" + "A" * 5000, "b" * 5000,
    [], [[]], {}, {"": {}}, ["a.png", 3], [["a", "b"]], [None], {"url": "a.png"}, {"path": None}, ITEMS, TURNS,
    {"type": "image"}, {"type": ["image"]}, {"role": ["user"], "content": 3}, "user", "assistant", "gpt", "text",
]  # fmt: skip
KEYS = [
    "messages", "conversations", "conversation", "role", "from", "content", "value", "type", "text", "image", "images",
    "video", "videos", "audio", "audios", "sound", "system", "history", "tools", "image_path", "kind", "loss", "path",
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def mutated_line(rng: random.Random) -> bytes:
    record = copy.deepcopy(rng.choice(SEEDS))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        found = places(record)
        if not found:
            break
        container, key = rng.choice(found)
        change = rng.randrange(4)
        if change == 0:
            container[key] = copy.deepcopy(rng.choice(JUNK))
        elif change == 1:
            del container[key]
        elif isinstance(container, dict):
            container[rng.choice(KEYS)] = container.pop(key) if change == 2 else copy.deepcopy(rng.choice(JUNK))
        else:
            container.insert(key, copy.deepcopy(rng.choice((*JUNK, container[key]))))
    line = bytearray(json.dumps(record, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass"))
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        position = rng.randrange(len(line) + 1)
        line[position : position + rng.randrange(3)] = rng.randbytes(rng.randrange(3)).replace(b"\n", b"")
    return bytes(line[: rng.randrange(len(line) + 1)] if rng.random() < 0.05 else line)


def check(line: bytes) -> bool:
    """Reads a line as training does; returns whether it is a conversation."""
    try:
        conversation = DATA.conversation(Entry(0, 7, line))
    except DataError as error:
        message = str(error)
        assert message.startswith(WHERE) and message.isprintable() and len(message) <= 1000
        return False
    tokenizer = tiny_tokenizer()
    ids, _ = tokenizer.encode_conversation(conversation)
    turns = len(conversation.messages) + (conversation.messages[0].role != "system")
    assert (ids == tokenizer._special_ids[TURN_START]).sum() == (ids == tokenizer.eos_id).sum() == turns
    assert np.isin(ids, list(tokenizer.media_ids.values())).sum() == len(conversation.media)
    for item in conversation.media:
        assert item.path and len(os.fsencode(item.path)) < 5000
    return True


@settings(max_examples=LINES // 100, deadline=None)
@given(st.integers(0, 2**32))
def test_a_mutated_line_is_a_conversation_or_one_error(seed):
    rng = random.Random(seed)
    good = sum(check(mutated_line(rng)) for _ in range(100))
    assert 5 < good < 95


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=LINES // 100, deadline=None)
@given(JSON | st.binary(max_size=30))
def test_any_line_is_a_conversation_or_one_error(value):
    check(value.replace(b"\n", b"") if isinstance(value, bytes) else json.dumps(value).encode())
