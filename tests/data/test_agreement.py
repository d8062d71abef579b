"""`check`, `index`, `train`, `evaluate`, `shard` and `inspect` say the same about each file.

So does `generate --data`: tests/generate/test_command.py.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
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
from omnivinci_jax.evaluation.accuracy import evaluate
from omnivinci_jax.evaluation.scoring import Scores
from omnivinci_jax.mesh.mesh import make_mesh, on_mesh
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.forms import parse_conversation
from omnivinci_jax.settings import DataConfig, MeshConfig
from tests.media.mixed import FILES, question_about, write_mixed_files
from tests.tiny import tiny_config, tiny_tokenizer

# Lines without a file that could be read, and what is said about them.
LINES = (
    ('{"messages": [}', "not JSON: "),
    (question_about("image", "https://a.org/b.png", None), "'https://a.org/b.png': URLs are not read: download the"),
    (question_about("video", "a\ud83d.mp4", None), "'a\\ud83d.mp4': not a path: it has half of a surrogate pair"),
    (question_about("audio", "absent.wav", None), "absent.wav: no such file"),
    (question_about("audio", "joined.mp3", None).replace("}\n", ', "wav": "a.wav"}'), "'wav' looks like media, but is"),
    (question_about("audio", "joined.mp3", None).replace("user", "tool"), "each message needs a 'role' of system, "),
    (question_about("image", "data:image/png;base64,AB=C", None), "a data: URI whose base64 is broken"),
)
CAPACITY = Capacity(rows=2, slots=448, tiles=64, windows=8, clips=8)
SETTINGS = DataConfig(groups=1, capacity=CAPACITY, workers=0)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(tiny_config(), tiny_tokenizer())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_mixed_files(folder)
    lines = [*(question_about(*file[:3]) for file in FILES), *(line for line, _ in LINES)]
    (folder / "data.jsonl").write_text("\n".join(line.strip() for line in lines))
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def shards(data, tmp_path_factory) -> Records:
    out = epath.Path(tmp_path_factory.mktemp("shards") / "shards")
    write_shards(data, out, per_shard=100, workers=1)
    return open_records(out)


def _assert_agrees(problems) -> None:
    """The problems name the broken lines and no other, and say what is wrong with each."""
    said = {}
    for problem in problems:
        where, _, text = problem.partition(": ")
        said[int(where.rpartition(":")[2])] = text
    expected = [f"{name}: {text}" if text is not None else None for _, name, _, text in FILES]
    expected = {line: text for line, text in enumerate([*expected, *(text for _, text in LINES)], start=1) if text}
    assert said.keys() == expected.keys()
    for line, text in expected.items():
        assert text in said[line]


def _train(records, processor) -> list[str]:
    index = build_index(records, processor, CAPACITY, "skip", quiet=True)
    plan = plan_all(index, SETTINGS)
    groups = Groups(index, plan, processor, SETTINGS, [0], len(plan))
    skipped = [problem for group in range(len(plan)) for problem in groups[group].skipped.values()]
    return [*index.problems, *skipped]


def test_check_agrees(data, capsys):
    assert cli.main(["check", str(data)]) == 1
    *problems, last = capsys.readouterr().out.splitlines()
    _assert_agrees(problems)
    assert last == f"{data}: {len(FILES) + len(LINES)} conversations, {len(problems)} problem(s)"


def test_training_agrees(data, processor):
    _assert_agrees(_train(Jsonl(data), processor))


def test_evaluation_agrees(data, processor):
    """With a stand-in for the model, which calls every answer right."""

    def right(params: dict, batch) -> Scores:
        weights = np.asarray(batch.loss_weights)
        source = np.zeros_like(np.asarray(batch.clip_source))
        return Scores(weights, weights, np.ones_like(weights, bool), np.asarray(batch.segment_ids), None, source)

    index, settings = (
        build_index(Jsonl(data), processor, CAPACITY, "skip", quiet=True),
        replace(SETTINGS, max_skipped=1),
    )
    mesh = make_mesh(MeshConfig())
    with on_mesh(mesh):
        found = evaluate(right, {}, index, processor, settings, mesh)
    _assert_agrees(found.skipped)
    assert found.counts == {"all": sum(text is None for *_, text in FILES)} and found.overall == 1


def test_shards_agree(shards, processor):
    _assert_agrees(_train(shards, processor))


def test_shard_names_what_it_cannot_read(data, tmp_path, caplog):
    write_shards(data, epath.Path(tmp_path / "shards"), per_shard=100, workers=1)
    messages = [record.getMessage() for record in caplog.records]
    assert messages and all(message.startswith(f"skipped: {data}:") for message in messages)
    _assert_agrees(message.removeprefix("skipped: ") for message in messages)


def test_inspect_agrees(data, tmp_path):
    for kind, name, track, text in FILES:
        if (kind, name) == ("image", "moving.webp"):  # `inspect` shows it as the video that it is
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
    with pytest.raises(DataError, match=r'^here:3: "track" is a sound track of a video or audio, from 1: '):
        parse_conversation({"messages": [{"role": "user", "content": [item]}]}, "here:3", data.parent)


def test_the_chosen_track_is_read_also_from_shards(data, shards, processor):
    for records in (Jsonl(data), shards):
        louder = []
        for entry in records.entries()[: len(FILES)]:
            conversation = records.conversation(entry)
            if "tracks.mka" in conversation.media[0].path and conversation.media[0].track != 3:
                _, _, windows = processor.load(conversation)
                louder.append(int(windows[0, 50].argmax()))
        default, first = louder
        assert default > first + 3  # mel bins: 1,000 Hz is above 500 Hz
