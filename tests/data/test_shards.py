"""Shards hold the same samples as their JSONL file, even if the writer is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from omnivinci_jax.data.index import Index, build_index
from omnivinci_jax.data.loader import plan_all, read_batches
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import Jsonl
from omnivinci_jax.data.shards import Shards
from omnivinci_jax.data.sources import open_records
from omnivinci_jax.data.write_shards import _media_record, write_shards
from omnivinci_jax.errors import DataError
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.sequence.chat import Media
from omnivinci_jax.settings import DataConfig
from tests.tiny import REPOSITORY, tiny_config, tiny_tokenizer

CAPACITY = Capacity(rows=2, slots=448, tiles=48, windows=5, clips=8)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(tiny_config(), tiny_tokenizer())


@pytest.fixture(scope="module")
def data(av_world, tmp_path_factory) -> Path:
    """av_world with two more sounds: one in stereo at another rate, and one that is missing."""
    folder = tmp_path_factory.mktemp("data")
    for media in ("clips", "images", "sounds"):
        (folder / media).symlink_to(av_world / media)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (66_150, 2))
    soundfile.write(folder / "noise.flac", noise, 44_100)
    lines = (av_world / "train.jsonl").read_text()
    for name in ("noise.flac", "gone.wav"):
        content = [{"type": "audio", "audio": name}, {"type": "text", "text": "What?"}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "noise"}]
        lines += "\n" + json.dumps({"messages": turns, "kind": "noise"}) + "\n"
    (folder / "data.jsonl").write_text(lines)
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def shards(data, tmp_path_factory) -> Shards:
    out = epath.Path(tmp_path_factory.mktemp("shards") / "shards")
    write_shards(data, out, per_shard=12, workers=2)
    return open_records(out)


def batches(index: Index, processor: Processor) -> list:
    settings = DataConfig(groups=1, capacity=CAPACITY, workers=0)
    plan = plan_all(index, settings)
    return list(read_batches(index, plan, processor, settings, [0], start=0, stop=len(plan)))


def test_shards_give_the_same_samples_as_the_file(data, shards, processor):
    from_file, from_shards = (build_index(r, processor, CAPACITY, "skip", quiet=True) for r in (Jsonl(data), shards))
    assert shards.manifest["shards"] > 3 and len(from_shards) == len(from_file) > 30
    assert np.array_equal(from_file.sizes, from_shards.sizes) and np.array_equal(from_file.lines, from_shards.lines)
    (problem,), (same_problem,) = from_file.problems, from_shards.problems
    assert same_problem == problem.replace(f"{data}:", f"{shards.path}:")
    assert from_shards.record(len(from_shards) - 1) == from_file.record(len(from_file) - 1)
    for first, second in zip(batches(from_file, processor), batches(from_shards, processor), strict=True):
        assert not first.skipped and not second.skipped
        sources = [loaded.batch.clip_source for loaded in (first, second)]  # hashes of paths, which differ
        assert len(np.unique(sources[0])) == len(np.unique(sources[1]))
        first, second = (loaded.batch._replace(clip_source=None) for loaded in (first, second))
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_a_file_is_stored_once_per_shard(data, shards):
    conversations = [Jsonl(data).conversation(entry) for entry in Jsonl(data).entries()]
    files = {item for conversation in conversations for item in conversation.media}
    stored = sum(ArrayRecordReader(str(path)).num_records() for path in shards.path.glob("media-*"))
    # Questions about one clip are consecutive, so only clips at a shard's ends are stored twice.
    assert len(files) <= stored < len(files) + shards.manifest["shards"]


def test_whatever_a_decoder_raises_is_the_problem_of_its_file(tmp_path):
    def fail(path, track):
        raise TypeError("unsupported operand\ntype(s)")

    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    header, stored = _media_record(Media("sound", "a.wav"), tmp_path, fail)
    assert (header, stored) == ({"problem": f"{tmp_path}/a.wav: TypeError: unsupported operand type(s)"}, b"")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_are_the_same_after_a_kill_and_a_second_run(data, shards, tmp_path):
    out = tmp_path / "shards"
    flags = (f"--out={out}", "--per_shard=12", "--max_skipped=1")
    command = [sys.executable, "-m", "omnivinci_jax.cli", "shard", str(data), *flags]
    process = subprocess.Popen([*command, "--workers=1"], cwd=REPOSITORY, start_new_session=True)
    while not list(out.glob("conversations-*")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Names of unfinished files begin with a dot.
    finished = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*-of-*")}
    if len(list(out.glob("conversations-*"))) < shards.manifest["shards"]:
        with pytest.raises(DataError, match="shards are missing; run the same `omnivinci shard` again"):
            open_records(epath.Path(out)).entries()
    subprocess.run([*command, "--workers=2"], cwd=REPOSITORY, check=True)
    assert content(out) == content(Path(shards.path))
    kept = [path for path in finished if path.stat().st_mtime_ns == finished[path]]
    assert len(kept) >= len([path for path in finished if "conversations" in path.name])


def test_writing_shards_imports_no_jax(data, tmp_path):
    program = (
        "import sys; from omnivinci_jax.cli import main; from omnivinci_jax.data import write_shards;"
        f"flags = ['--out', {str(tmp_path / 'shards')!r}, '--workers', '1', '--max_skipped', '1'];"
        f"code = main(['shard', {str(data)!r}, *flags]);"
        "sys.exit(code or any(name.split('.')[0] in ('jax', 'flax', 'grain', 'tensorflow') for name in sys.modules))"
    )
    (tmp_path / "main.py").write_text(f"if __name__ == '__main__':\n    {program}\n")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, tmp_path / "main.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_with_other_content_is_not_changed(data, shards, tmp_path):
    with pytest.raises(DataError, match=r"holds shards of other data or settings \(shards is \d+, and would be \d+\)"):
        write_shards(data, shards.path, per_shard=5, workers=1)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="the folder is not empty and holds no shards"):
        write_shards(data, epath.Path(tmp_path), per_shard=5, workers=1)


# A Python with requirements/tfio.txt installed.
TFIO_PYTHON = os.environ.get("OMNIVINCI_TFIO_PYTHON")


@pytest.mark.skipif(not TFIO_PYTHON, reason="OMNIVINCI_TFIO_PYTHON names no Python with requirements/tfio.txt")
def test_tensorflow_io_reads_the_same_sounds(tmp_path):
    """wav, flac, ogg and mp3, two channels among them, at 16 kHz and resampled."""
    noise, lines = np.random.default_rng(0), ""
    formats = [("wav", None), ("flac", None), ("ogg", None), ("mp3", None)]
    formats += [("wav", kind) for kind in ("PCM_U8", "PCM_24", "FLOAT")] + [("flac", "PCM_24")]
    files = [(f"{kind}{rate}.{suffix}", rate, kind) for rate in (16_000, 44_100) for suffix, kind in formats]
    for name, rate, kind in files:
        # Below 4 kHz, which encoders keep, so a shift by one sample would show.
        sound = np.cumsum(noise.normal(size=(2 * rate, 2)), axis=0)
        soundfile.write(tmp_path / name, 0.5 * sound / np.abs(sound).max(), rate, kind)
        turns = [{"role": "user", "content": [{"type": "audio", "audio": name}]}, {"role": "assistant", "content": "a"}]
        lines += json.dumps({"messages": turns}) + "\n"
    (tmp_path / "data.jsonl").write_text(lines)
    command = ["-m", "omnivinci_jax.cli", "shard", tmp_path / "data.jsonl", "--workers", "1", "--out"]
    done = subprocess.run(
        [TFIO_PYTHON, *command, tmp_path / "tfio", "--decoder", "tfio"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    write_shards(tmp_path / "data.jsonl", epath.Path(tmp_path / "default"), per_shard=1000, workers=1)
    processor = Processor(tiny_config(), tiny_tokenizer())
    indices = [
        build_index(open_records(epath.Path(tmp_path / name)), processor, CAPACITY, "skip", quiet=True)
        for name in ("tfio", "default")
    ]
    assert all(len(index) == len(files) and not index.problems for index in indices)
    assert np.array_equal(indices[0].sizes, indices[1].sizes)
    for sample, (name, *_) in enumerate(files):
        (_, _, found), (_, _, expected) = (processor.load(index.conversation(sample)) for index in indices)
        # Lossless files are equal bit for bit; lossy decoders round differently.
        np.testing.assert_allclose(found, expected, atol=0 if name.endswith(("wav", "flac")) else 1e-3, err_msg=name)
