"""The command line: parser, exit codes and imports on start."""

import io
import json
import os
import subprocess
import sys

import pytest

from omnivinci_jax.cli import main
from omnivinci_jax.evaluation import accuracy
from tests.tiny import REPOSITORY


def test_the_command_line_imports_neither_jax_nor_numpy_nor_conversion():
    code = "import sys, omnivinci_jax.cli; print({'jax', 'numpy', 'conversion'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_tokenizer_command_reproduces_the_tiny_tokenizer(tmp_path):
    assert main(["av_world", "tokenizer", "--out", str(tmp_path)]) == 0
    kept = REPOSITORY / "configs" / "tiny_tokenizer"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in kept.iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (kept / path.name).read_bytes(), path.name


def test_av_world_defaults_to_generate(tmp_path):
    clips = ["--train_clips=1", "--val_clips=0", "--held_out_clips=1", "--workers=1"]
    assert main(["av_world", f"--out={tmp_path / 'a'}", *clips]) == 0
    assert main(["av_world", "generate", f"--out={tmp_path / 'b'}", *clips]) == 0
    names = [sorted(path.name for path in (tmp_path / folder).rglob("*")) for folder in "ab"]
    assert names[0] == names[1] and "held_out.jsonl" in names[0]


def test_errors_name_the_command_and_exit_with_2(tmp_path, capsys):
    assert main(["av_world", "audit", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"omnivinci av_world: {tmp_path / 'av_world.json'}: no such file")
    assert main(["convert", "to-torch", str(tmp_path), str(tmp_path / "out"), "--layout", "merged"]) == 2
    assert capsys.readouterr().err.startswith(f"omnivinci convert: {tmp_path / 'config.json'}: no such file")
    for arguments in (["convert"], ["convert", "to-onnx"], ["convert", "verify", "one"], ["av_world", "--seed=1"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
    assert "omnivinci convert verify: error: the following arguments are required: TORCH_DIR" in capsys.readouterr().err


def test_paths_and_texts_that_are_no_characters_can_be_printed(tmp_path, monkeypatch):
    """A path of Latin-1 bytes, on a terminal that knows ASCII alone."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    turns = [{"role": "user", "content": "a\ud83d é"}, {"role": "assistant", "content": "b"}]
    lines = [{"messages": turns, "images": [name]} for name in ("é.png", "a\ud83d.png", os.fsdecode(b"\xe9.png"))]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, [{"messages": turns}, *lines])))
    output, terminal = io.BytesIO(), sys.stdout
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii", write_through=True))
    code = main(["check", str(folder / "data.jsonl")])
    monkeypatch.setattr(sys, "stdout", terminal)
    where = f"{tmp_path}/caf\\udce9/data.jsonl"
    assert output.getvalue().decode().splitlines() == [
        rf"{where}:2: {tmp_path}/caf\udce9/\xe9.png: no such file",
        rf"{where}:3: 'a\ud83d.png': not a path: it has half of a surrogate pair",
        rf"{where}:4: {tmp_path}/caf\udce9/\udce9.png: no such file",
        f"{where}: 4 conversations, 3 problem(s)",
    ]
    assert code == 1


def test_evaluate_names_what_it_skips(tmp_path, monkeypatch, capsys, caplog):
    skipped = ("a.jsonl:3: b.wav: no such file", "a.jsonl:5: TypeError: x")
    found = accuracy.Evaluation(0.5, {"all": 0.5}, {"all": 2}, 1.0, skipped)
    monkeypatch.setattr(accuracy, "evaluate_file", lambda *_: found)
    assert main(["evaluate", "--model", "x", "--data", "a.jsonl", "--out", str(tmp_path / "results.json")]) == 0
    assert [record.getMessage() for record in caplog.records] == [f"skipped: {problem}" for problem in skipped]
    assert "| **overall** | **50.0%** | **2** |" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["skipped"] == 2


def test_a_url_is_not_a_file(capsys):
    assert main(["inspect", "https://a.org/b.mp4"]) == 2
    assert "'https://a.org/b.mp4': URLs are not read: download the file and give its path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["check", "shard --out x", "generate --model x --data", "evaluate --model x --data"]
)
def test_a_url_is_not_a_data_file(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "https://a.org/b.jsonl", *(["--out", "y"] if "evaluate" in command else [])])
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(": https://a.org/b.jsonl: URLs are not read: download the file and give its path")


@pytest.mark.parametrize("command", ["index", "train --workdir {}"])
def test_a_configuration_may_not_name_a_url(command, tmp_path, capsys):
    config = [f"--config={REPOSITORY / 'configs' / 'tiny.py'}", "--config.data.train=https://a.org/b.jsonl"]
    assert main([*command.format(tmp_path).split(), *config]) == 2
    assert "https://a.org/b.jsonl: URLs are not read: download the file and give" in capsys.readouterr().err


def test_a_bucket_is_no_place_for_a_jsonl_file(capsys):
    with pytest.raises(SystemExit):
        main(["check", "gs://bucket/data.jsonl"])
    assert "data.jsonl: is in a bucket: download the file and give its path" in capsys.readouterr().err
