import json
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from etils import epath

from omnivinci_jax.data.check import check_file
from omnivinci_jax.data.index import IndexPool, build_index, open_index
from omnivinci_jax.data.loader import Groups, Loaded, Plan, plan_all, read_batches
from omnivinci_jax.data.mixture import as_mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Jsonl, check_skipped
from omnivinci_jax.errors import DataError
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig
from tests.tiny import REPOSITORY, tiny_config, tiny_tokenizer

CAPACITY = Capacity(rows=2, slots=448, tiles=48, windows=5, clips=8)
SETTINGS = DataConfig(groups=2, capacity=CAPACITY, workers=0)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(tiny_config(), tiny_tokenizer())


@pytest.fixture(scope="module")
def index(av_world, processor):
    return build_index(Jsonl(av_world / "train.jsonl"), processor, CAPACITY, "skip", quiet=True)


def same(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_every_sample_is_seen_once_an_epoch_and_epochs_differ(index):
    plan = Plan(as_mixture(index), CAPACITY, seed=3)
    first, number = [], 0
    while len(first) < len(index):
        first += [sample for row in plan[number] for sample in row]
        number += 1
    assert sorted(first) == list(range(len(index)))
    second = [sample for row in plan[number] for sample in row]
    assert second and second != first[: len(second)]


def test_a_group_is_a_function_of_seed_and_index(index):
    plan = Plan(as_mixture(index), CAPACITY, seed=3)
    groups = [plan[number] for number in range(12)]
    assert Plan(as_mixture(index), CAPACITY, seed=3)[11] == groups[11]
    later = [plan[number] for number in (200, 300)]
    start = plan.block_of(200)
    assert start[0] > 0 and [Plan(as_mixture(index), CAPACITY, 3, start)[number] for number in (200, 300)] == later
    assert [plan[number] for number in range(12)] == groups
    assert [Plan(as_mixture(index), CAPACITY, seed=4)[number] for number in range(12)] != groups


def one_group(index, processor, rows, capacity=CAPACITY) -> Loaded:
    """Loads one group of the planned rows."""
    return Groups(index, [rows], processor, replace(SETTINGS, groups=1, capacity=capacity), [0], 1)[0]


def test_a_resumed_loader_and_one_with_workers_give_the_same_batches(index, processor):
    plan = Plan(as_mixture(index), CAPACITY, seed=0)
    whole = list(read_batches(index, plan, processor, SETTINGS, [0, 1], start=0, stop=4))
    rest = list(read_batches(index, plan, processor, replace(SETTINGS, workers=1), [0, 1], start=2, stop=4))
    assert len(whole) == 4 and len(rest) == 2
    for expected, found in zip(whole[2:], rest, strict=True):
        assert same(expected.batch, found.batch)


FAILS = """
import sys
from pathlib import Path
from absl import flags
from omnivinci_jax.data.index import build_index
from omnivinci_jax.data.loader import Plan, read_batches
from omnivinci_jax.data.mixture import as_mixture
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Jsonl
from tests.data.test_loader import CAPACITY, SETTINGS
from tests.tiny import tiny_config, tiny_tokenizer

flags.FLAGS.mark_as_parsed()
processor = Processor(tiny_config(), tiny_tokenizer())
index = build_index(Jsonl(Path(sys.argv[1])), processor, CAPACITY, "skip", quiet=True)
settings = SETTINGS.__class__(**vars(SETTINGS) | {"workers": 1})
for loaded in read_batches(index, Plan(as_mixture(index), CAPACITY, 0), processor, settings, [0, 1], start=0, stop=100):
    raise BrokenPipeError("no one listens")
"""


def test_a_failing_program_exits_without_leaking_shared_memory(av_world):
    command = [sys.executable, "-c", FAILS, str(av_world / "train.jsonl")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "BrokenPipeError: no one listens" in done.stderr, done.stderr[-3000:]
    assert "leaked" not in done.stderr


def test_processes_load_their_groups_of_the_same_batches(index, processor):
    plan = Plan(as_mixture(index), CAPACITY, seed=0)
    whole = list(read_batches(index, plan, processor, SETTINGS, [0, 1], start=1, stop=3))
    for group in (0, 1):
        parts = list(read_batches(index, plan, processor, SETTINGS, [group], start=1, stop=3))
        for batch, part in zip(whole, parts, strict=True):
            assert same(
                jax.tree.map(lambda x, group=group: x[group : group + 1], batch.batch),
                part.batch,
            )


def test_batches_mix_modalities_in_one_group(index, processor):
    """Video, image, sound and text rows share a group."""
    kinds = set()
    settings = replace(SETTINGS, groups=1)
    plan = plan_all(index, settings)
    for batch, _ in read_batches(index, plan, processor, settings, [0], start=0, stop=len(plan)):
        for segment in range(1, batch.segment_ids.max() + 1):
            for row in range(CAPACITY.rows):
                slot_kinds = batch.slot_kind[0, row][batch.segment_ids[0, row] == segment]
                kinds.add((row, frozenset(slot_kinds.tolist())))
    assert len({kind for _, kind in kinds}) >= 3


def test_cached_media_are_the_same_and_follow_the_file(av_world, processor, tmp_path):
    cached = replace(processor, cache=epath.Path(tmp_path / "cache"))
    shutil.copytree(av_world / "clips", tmp_path / "clips")
    shutil.copy(av_world / "val.jsonl", tmp_path)
    index = build_index(Jsonl(tmp_path / "val.jsonl"), cached, CAPACITY, "skip", quiet=True)
    conversation = index.conversation(0)
    plain = processor.load(conversation)
    for _ in range(2):  # once written, once read
        assert plain[0] == cached.load(conversation)[0]
        assert same(plain[1:], cached.load(conversation)[1:])
    other = index.conversation(len(index) - 1).media[0].path
    shutil.copy(other, conversation.media[0].path)
    assert not same(cached.load(conversation)[1:], plain[1:])


def test_an_unreadable_file_becomes_padding_and_a_reported_error(av_world, processor, tmp_path):
    shutil.copytree(av_world / "clips", tmp_path / "clips")
    shutil.copy(av_world / "held_out.jsonl", tmp_path)
    index = build_index(Jsonl(tmp_path / "held_out.jsonl"), processor, CAPACITY, "skip", quiet=True)
    gone = index.conversation(0).media[0].path
    with open(gone, "r+b") as file:
        file.truncate(1000)
    loaded = one_group(index, processor, [[0, len(index) - 1], [1]])
    assert loaded.skipped.keys() == {0, 1}  # two questions about one clip
    assert loaded.skipped[0].startswith(f"{index.path}:{index.lines[0]}: {gone}")
    assert set(loaded.batch.segment_ids[0]) == {0, 2} and loaded.batch.loss_weights[0].any()
    assert not loaded.batch.segment_ids[1].any() and not loaded.batch.loss_weights[1].any()


def test_a_file_changed_since_indexing_is_reported(av_world, processor, tmp_path):
    shutil.copytree(av_world / "clips", tmp_path / "clips")
    shutil.copy(av_world / "held_out.jsonl", tmp_path)
    index = build_index(Jsonl(tmp_path / "held_out.jsonl"), processor, CAPACITY, "skip", quiet=True)
    first, last = index.conversation(0).media[0].path, index.conversation(len(index) - 1).media[0].path
    shutil.copy(last, first)
    loaded = one_group(index, processor, [[0], []])
    assert "changed since it was indexed" in loaded.skipped[0]


def test_samples_that_do_not_fit_are_skipped_or_thinned(av_world, processor):
    small = CAPACITY._replace(tiles=10)
    skipped = build_index(Jsonl(av_world / "val.jsonl"), processor, small, "skip", quiet=True)
    assert len(skipped) == 0 and "tiles where data.capacity.tiles is 10" in skipped.problems[0]
    thinned = build_index(Jsonl(av_world / "val.jsonl"), processor, small, "thin", quiet=True)
    assert not thinned.problems and (thinned.sizes[:, 1] <= 10).all() and (thinned.max_frames > 0).all()
    loaded = one_group(thinned, processor, [[0], []], small)
    assert loaded.batch.segment_ids[0].any() and not loaded.skipped


def test_an_index_is_reused_until_the_file_or_the_settings_change(av_world, processor, tmp_path):
    data = tmp_path / "text.jsonl"
    line = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    data.write_text(json.dumps(line) + "\n")

    def sizes(capacity=CAPACITY):
        index = open_index(Jsonl(data), processor, capacity, "skip", epath.Path(tmp_path / "index"), IndexPool(1))
        return index.sizes.tolist(), len(list((tmp_path / "index").iterdir()))

    first = sizes()
    assert sizes() == first and first[1] == 1
    assert sizes(CAPACITY._replace(rows=3))[1] == 2
    data.write_text((json.dumps(line) + "\n") * 2)
    assert len(sizes()[0]) == 2


def test_an_index_with_too_many_problems_is_not_saved(av_world, processor, tmp_path):
    content = [{"type": "image", "image": "late.png"}, {"type": "text", "text": "What?"}]
    data = tmp_path / "late.jsonl"
    data.write_text(json.dumps({"messages": [{"role": "user", "content": content}]}))

    def problems() -> tuple[str, ...]:
        return open_index(
            Jsonl(data), processor, CAPACITY, "skip", epath.Path(tmp_path / "index"), IndexPool(1), 0.01
        ).problems

    assert "late.png: no such file" in problems()[0]
    shutil.copy(next(av_world.rglob("*.png")), tmp_path / "late.png")
    assert not problems()


def chat_line(text: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]})


def test_lines_that_are_no_conversations_are_problems_of_their_own(processor, tmp_path):
    data = tmp_path / "bad.jsonl"
    lines = ["", '{"messages": [}', chat_line("hi"), '{"messages": 3}', "[" * 100_000, chat_line("a \ud83d"), '"\xff"']
    data.write_bytes("\n".join(lines).encode("latin-1"))
    index = build_index(Jsonl(data), processor, CAPACITY, "skip", quiet=True)
    assert index.lines.tolist() == [3, 6]
    assert [problem.removeprefix(f"{data}:")[:12] for problem in index.problems] == [
        "2: not JSON:", "4: 'messages", "5: not JSON:", "7: not JSON:"
    ]  # fmt: skip


class Broken(Processor):
    """A processor that fails as no decoder of ours should, on the text "2"."""

    def lay_out(self, conversation, sizes, *, generate=False):
        if "2" in conversation.messages[0].content:
            raise TypeError("a decoder's\nfault \udce9")
        return super().lay_out(conversation, sizes, generate=generate)


def test_whatever_one_sample_raises_leaves_out_that_sample(processor, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(chat_line, "123")))
    broken = Broken(processor.config, processor.tokenizer)
    expected = f"{data}:2: TypeError: a decoder's fault \\udce9"
    index = build_index(Jsonl(data), broken, CAPACITY, "skip", quiet=True)
    assert index.lines.tolist() == [1, 3] and index.problems == (expected,)
    loaded = one_group(build_index(Jsonl(data), processor, CAPACITY, "skip", quiet=True), broken, [[0, 1, 2], []])
    assert loaded.skipped == {1: expected} and set(loaded.batch.segment_ids[0]) == {0, 1, 3}
    assert check_file(data, broken) == (3, [expected])
    with pytest.raises(
        DataError, match=r"1 of 3 samples cannot be used, more than max_skipped = 0\.3 allows:\n .*:2: "
    ):
        check_skipped(index.problems, 3, 0.3, data)
    check_skipped(index.problems, 3, 0.4, data)


def test_a_json_array_is_read_like_lines(processor, tmp_path):
    records = [json.loads(chat_line(text)) for text in ("é" * 40_000, "two", "three")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(records, indent=1, ensure_ascii=False))
    lines, array = Jsonl(tmp_path / "a.jsonl"), Jsonl(tmp_path / "a.json")
    assert [entry.line for entry in array.entries()] == [2, 14, 26]
    for first, second in zip(lines.entries(), array.entries(), strict=True):
        assert array.read(second.location) == second.data
        assert lines.conversation(first).messages == array.conversation(second).messages
    text = (tmp_path / "a.json").read_text()
    for content, message in (
        (text[:-30], r"a\.json:34: not JSON"), (text.replace("\n },", "\n }", 1), r"a\.json:14: not JSON: expected"),
        ("[]", "no conversations"), ("[" * 100_000, "not JSON"),
    ):  # fmt: skip
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DataError, match=message) as error:
            Jsonl(tmp_path / "a.json").entries()
        assert "\n" not in str(error.value)
    (tmp_path / "a.json").write_text(json.dumps(records[0], indent=1))
    with pytest.raises(DataError, match="a conversation takes several lines: write one conversation a line"):
        Jsonl(tmp_path / "a.json").entries()


@pytest.mark.parametrize("drop, tiles, windows", [("sound", True, False), ("vision", False, True)])
def test_dropping_a_stream_leaves_the_other(av_world, drop, tiles, windows):
    blind = Processor(tiny_config(), tiny_tokenizer(), drop=drop)
    index = build_index(Jsonl(av_world / "held_out.jsonl"), blind, CAPACITY, "skip", quiet=True)
    assert (index.sizes[:, 1] > 0).all() == tiles and (index.sizes[:, 2] > 0).all() == windows
    assert len(index) == 10
    loaded = one_group(index, blind, [[0], []])
    assert loaded.batch.segment_ids[0].any() and not loaded.skipped
