"""`check`, `index`, `train`, `evaluate`, `generate --data`, `shard` and `inspect` say the same about each file."""

from pathlib import Path

import pytest
from etils import epath

from omnivinci_jax import cli
from omnivinci_jax.data.index import build_index
from omnivinci_jax.data.inspect import draw_file
from omnivinci_jax.data.loader import Groups, plan_all
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Jsonl, Records
from omnivinci_jax.data.sources import open_records
from omnivinci_jax.data.write_shards import write_shards
from omnivinci_jax.errors import DataError, MediaError
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.forms import parse_conversation
from omnivinci_jax.settings import DataConfig
from tests.media.mixed import FILES, question_about, write_mixed_files
from tests.tiny import tiny_config, tiny_tokenizer

CAPACITY = Capacity(rows=2, slots=448, tiles=64, windows=8, clips=8)
SETTINGS = DataConfig(groups=1, capacity=CAPACITY, workers=0)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(tiny_config(), tiny_tokenizer())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_mixed_files(folder)
    (folder / "data.jsonl").write_text("".join(question_about(*file[:3]) for file in FILES))
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def shards(data, tmp_path_factory) -> Records:
    out = epath.Path(tmp_path_factory.mktemp("shards") / "shards")
    write_shards(data, out, per_shard=100, workers=1)
    return open_records(out)


def _by_line(problems) -> dict[int, str]:
    """Returns what is said about each line, without the file's folder."""
    said = {}
    for problem in problems:
        where, _, text = problem.partition(": ")
        said[int(where.rpartition(":")[2])] = text.rpartition("/")[2] if "/" in text.split(": ")[0] else text
    return said


def _expected() -> dict[int, str]:
    return {line: f"{name}: {text}" for line, (_, name, _, text) in enumerate(FILES, start=1) if text is not None}


def _assert_agrees(said: dict[int, str]) -> None:
    expected = _expected()
    assert said.keys() == expected.keys()
    for line, text in expected.items():
        assert said[line].startswith(text)


def _train(records, processor) -> dict[int, str]:
    index = build_index(records, processor, CAPACITY, "skip", quiet=True)
    plan = plan_all(index, SETTINGS)
    groups = Groups(index, plan, processor, SETTINGS, [0], len(plan))
    skipped = [problem for group in range(len(plan)) for problem in groups[group].skipped.values()]
    return _by_line([*index.problems, *skipped])


def test_check_agrees(data, capsys):
    assert cli.main(["check", str(data)]) == 1
    lines = capsys.readouterr().out.splitlines()
    _assert_agrees(_by_line(line for line in lines if line.startswith(f"{data}:") and "problem(s)" not in line))


def test_training_agrees(data, processor):
    _assert_agrees(_train(Jsonl(data), processor))


def test_prompts_of_evaluate_and_generate_agree(data, processor):
    records, said = Jsonl(data), []
    for entry in records.entries():
        conversation = records.conversation(entry)
        try:
            processor.load(conversation.unanswered)
        except MediaError as error:
            said.append(f"{conversation.where}: {error}")
    _assert_agrees(_by_line(said))


def test_shards_agree(shards, processor):
    _assert_agrees(_train(shards, processor))


def test_inspect_agrees(data, tmp_path):
    for kind, name, track, text in FILES:
        if (kind, name) == ("image", "moving.webp"):  # inspect shows it as the video that it is
            continue
        if text is None:
            draw_file(data.parent / name, tiny_config(), tmp_path / "a.png", track)
        else:
            with pytest.raises(MediaError) as caught:
                draw_file(data.parent / name, tiny_config(), tmp_path / "a.png", track)
            assert str(caught.value).startswith(f"{data.parent / name}: {text}")


@pytest.mark.parametrize(
    "item",
    [
        {"type": "audio", "audio": "tracks.mka", "track": 0},
        {"type": "audio", "audio": "tracks.mka", "track": "eng"},
        {"type": "video", "video": "tracks.mka", "track": True},
        {"type": "image", "image": "photo.heic", "track": 1},
    ],
)
def test_a_track_is_a_number_from_1(item, data):
    with pytest.raises(DataError, match=r'^here:3: "track" is a sound track of a video or audio item, from 1: '):
        parse_conversation({"messages": [{"role": "user", "content": [item]}]}, "here:3", data.parent)


def test_the_chosen_track_is_read_also_from_shards(data, shards, processor):
    for records in (Jsonl(data), shards):
        louder = []
        for entry in records.entries():
            conversation = records.conversation(entry)
            if "tracks.mka" in conversation.media[0].path and conversation.media[0].track != 3:
                _, _, windows = processor.load(conversation)
                louder.append(int(windows[0, 50].argmax()))
        default, first = louder
        assert default > first + 3  # mel bins: 1,000 Hz is above 500 Hz
