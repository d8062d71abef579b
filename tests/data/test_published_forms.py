"""Data in LLaMA-Factory's and ms-swift's documented forms give the batches of the same data in ours, bit for bit."""

import base64
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from omnivinci_jax.data.check import check_file
from omnivinci_jax.data.index import build_index
from omnivinci_jax.data.loader import plan_all, read_batches
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.sources import open_records
from omnivinci_jax.data.write_shards import write_shards
from omnivinci_jax.errors import DataError
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig
from tests.tiny import tiny_config, tiny_tokenizer

SETTINGS = DataConfig(groups=1, capacity=Capacity(rows=2, slots=448, tiles=48, windows=5, clips=8), workers=0)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(tiny_config(), tiny_tokenizer())


@pytest.fixture(scope="module")
def media(av_world) -> dict[str, str]:
    """A file of each kind."""
    patterns = {"image": "images/*", "video": "clips/*.mp4", "audio": "sounds/*"}
    return {kind: str(sorted(av_world.glob(pattern))[0]) for kind, pattern in patterns.items()}


def turn(role: str, *content) -> dict:
    """A message in our form: texts, and (kind, path) for media."""
    items = [
        {"type": "text", "text": item} if isinstance(item, str) else {"type": item[0], item[0]: item[1]}
        for item in content
    ]
    return {"role": role, "content": items}


def write(path: Path, records: list[dict], array: bool = False) -> Path:
    path.write_text(json.dumps(records, indent=2) if array else "\n".join(map(json.dumps, records)))
    return path


def batches(path: Path, processor: Processor) -> list:
    index = build_index(open_records(epath.Path(path)), processor, SETTINGS.capacity, "skip", quiet=True)
    assert not index.problems
    plan = plan_all(index, SETTINGS)
    loaded = list(read_batches(index, plan, processor, SETTINGS, [0], start=0, stop=len(plan)))
    assert not any(skipped for _, skipped in loaded)
    return [batch for batch, _ in loaded]


def assert_same(first: list, second: list) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_llama_factory(media, processor, tmp_path):
    """As in its data/mllm_demo.json, mllm_video_demo.json, mllm_audio_demo.json and glaive_toolcall's system."""
    image, video, sound = media["image"], media["video"], media["audio"]

    def demo(user: list[str], assistant: list[str], **keys) -> dict:
        pairs = zip(user, assistant, strict=True)
        messages = [{"content": t, "role": r} for pair in pairs for t, r in zip(pair, ("user", "assistant"))]  # noqa: B905
        return {"messages": messages, **keys}

    theirs = [
        demo(["<image>Who are they?", "Doing what?<image>"], ["Two.", "Celebrating."], images=[image, image]),
        demo(["<video>Why is it funny?"], ["It <image> is."], videos=[video]),
        demo(["<audio>What's that sound?"], ["Glass."], audios=[sound]),
        {"conversations": [{"from": "human", "value": "Hi <b>"}, {"from": "gpt", "value": "Yes"}], "system": "Brief."},
    ]
    ours = [
        [
            turn("user", ("image", image), "Who are they?"),
            turn("assistant", "Two."),
            turn("user", "Doing what?", ("image", image)),
            turn("assistant", "Celebrating."),
        ],
        [turn("user", ("video", video), "Why is it funny?"), turn("assistant", "It <image> is.")],
        [turn("user", ("audio", sound), "What's that sound?"), turn("assistant", "Glass.")],
        [turn("system", "Brief."), turn("user", "Hi <b>"), turn("assistant", "Yes")],
    ]
    expected = batches(write(tmp_path / "ours.jsonl", [{"messages": messages} for messages in ours]), processor)
    assert sum((batch.loss_weights > 0).sum() for batch in expected) > 20
    assert_same(expected, batches(write(tmp_path / "theirs.jsonl", theirs), processor))
    assert_same(expected, batches(write(tmp_path / "theirs.json", theirs, array=True), processor))
    assert check_file(tmp_path / "theirs.json", processor) == (4, [])


def test_ms_swift(media, processor, tmp_path):
    """As in the table of its "Custom Dataset" page."""
    image, video, sound = media["image"], media["video"], media["audio"]
    answer = {"role": "assistant", "content": "A dog"}
    theirs = [
        {"messages": [{"role": "user", "content": "Where is it?"}, answer]},
        {"messages": [{"role": "user", "content": "<image><image>What differs?"}, answer], "images": [image, image]},
        {"messages": [{"role": "user", "content": "<audio>What did it say?"}, answer], "audios": [sound]},
        {
            "messages": [
                {"role": "system", "content": "You are a helpful and harmless assistant"},
                {"role": "user", "content": "<image>What is in the image, <video>What is in the video?"},
                answer,
            ],
            "images": [image],
            "videos": [video],
        },
        {"query": "What is it?", "response": "A dog", "images": [image]},
    ]
    ours = [
        [turn("user", "Where is it?")],
        [turn("user", ("image", image), ("image", image), "What differs?")],
        [turn("user", ("audio", sound), "What did it say?")],
        [
            turn("system", "You are a helpful and harmless assistant"),
            turn("user", ("image", image), "What is in the image, ", ("video", video), "What is in the video?"),
        ],
        [turn("user", ("image", image), "What is it?")],
    ]
    records = [{"messages": [*messages, turn("assistant", "A dog")]} for messages in ours]
    expected = batches(write(tmp_path / "ours.jsonl", records), processor)
    assert_same(expected, batches(write(tmp_path / "theirs.jsonl", theirs), processor))


def test_a_file_inside_the_conversation(media, processor, tmp_path):
    """The same batches, from the JSONL file and from shards."""
    image, sound = (Path(media[kind]) for kind in ("image", "audio"))
    inline = [
        f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"
        for path, mime in ((image, "image/png"), (sound, "audio/wav"))
    ]
    lines = [
        {"messages": [{"role": "user", "content": "?"}, turn("assistant", "A")], "images": [a], "audios": [b]}
        for a, b in ((str(image), str(sound)), inline)
    ]
    expected = batches(write(tmp_path / "files.jsonl", lines[:1]), processor)
    assert_same(expected, batches(write(tmp_path / "inline.jsonl", lines[1:]), processor))
    write_shards(tmp_path / "inline.jsonl", epath.Path(tmp_path / "shards"), per_shard=10, workers=1)
    assert_same(expected, batches(tmp_path / "shards", processor))


def test_shards_keep_the_problems_of_broken_lines(media, processor, tmp_path):
    """A lone surrogate in a text, a file whose name is not UTF-8, and lines that no form reads."""
    latin = os.fsdecode(b"caf\xe9.png")
    shutil.copy(media["image"], tmp_path / latin)
    lines = [
        {"messages": [turn("user", "a\ud83d"), turn("assistant", "b")], "score": float("nan")},
        {"messages": [turn("user", "x"), turn("assistant", "b")], "image_path": "a.png"},
        {"messages": [turn("user", ("image", latin)), turn("assistant", "b")]},
        {"messages": [turn("user", ("image", "https://a.org/b.png")), turn("assistant", "b")]},
        {"messages": [turn("user", ("image", "a\ud83d.png")), turn("assistant", "b")]},
    ]
    data, out = write(tmp_path / "data.jsonl", lines), epath.Path(tmp_path / "shards")
    with pytest.raises(DataError, match=r"3 of 5 samples cannot be used, more than max_skipped = 0\.5 allows"):
        write_shards(data, out / "strict", per_shard=5, workers=1, max_skipped=0.5)
    write_shards(data, out / "all", per_shard=5, workers=1)
    from_file, from_shards = (
        build_index(open_records(epath.Path(path)), processor, SETTINGS.capacity, "skip", quiet=True)
        for path in (data, out / "all")
    )
    assert from_file.lines.tolist() == from_shards.lines.tolist() == [1, 3]
    assert [problem.partition(": ")[0] for problem in from_file.problems] == [f"{data}:{line}" for line in (2, 4, 5)]
    assert "".join(from_file.problems).isprintable()
    assert [text.replace(str(out / "all"), str(data)) for text in from_shards.problems] == list(from_file.problems)
    for sample in (0, 1):
        first, second = (processor.load(index.conversation(sample))[1:] for index in (from_file, from_shards))
        assert_same(list(first), list(second))
    assert from_shards.record(0)["score"] is None  # JSON has no NaN
    assert check_file(data, processor) == (5, list(from_file.problems))
