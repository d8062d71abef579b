"""`verify`: agreement, and every kind of difference."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conversion.from_torch import from_torch
from conversion.tensor_files import stored_tensors
from conversion.to_torch import to_torch
from conversion.verify import verify
from omnivinci_jax.cli import main
from omnivinci_jax.errors import UserError
from tests.conversion.checkpoints import make, rewrite
from tests.tiny import REPOSITORY, tiny_config

NORM, EMBEDDING = "llm.model.norm.weight", "llm.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """A model directory and the float32 checkpoint it was converted from; tests must not change them."""
    folder = tmp_path_factory.mktemp("pair")
    make(folder / "torch", "merged", "F32")
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    finite = {name: np.resize(values, tensor.shape) for name, tensor in stored_tensors(folder / "torch").items()}
    finite[NORM][:2] = 0.0, np.inf
    rewrite(folder / "torch", lambda tensors: tensors.update(finite))
    from_torch(folder / "torch", folder / "model")
    return folder / "model", folder / "torch"


@pytest.fixture
def changed(pair, tmp_path):
    """The model directory, and a copy of the checkpoint that tests may change."""
    return pair[0], Path(shutil.copytree(pair[1], tmp_path / "torch"))


@pytest.mark.parametrize("layout", ["released", "merged"])
def test_a_converted_model_agrees_in_either_layout(pair, layout, tmp_path, capsys):
    model, source = pair
    report = verify(model, source)
    assert not report.differences and report.tensors == len(stored_tensors(source))
    assert len(report.notes) == 1 and "not compared" in report.notes[0] and "omni_align" in report.notes[0]
    to_torch(model, tmp_path / layout, layout=layout)
    assert verify(model, tmp_path / layout) == dataclasses.replace(
        report, notes=[report.notes[0].replace(str(source), str(tmp_path / layout))]
    )

    trained = Path(shutil.copytree(model, tmp_path / "trained"))
    root = json.loads((trained / "config.json").read_text())
    assert root["omnivinci_jax"].pop("untrained") == ["omni_align"]
    (trained / "config.json").write_text(json.dumps(root))
    to_torch(trained, tmp_path / "whole", layout=layout)
    whole = verify(trained, tmp_path / "whole")  # unpublished parameters included
    assert whole.tensors > report.tensors and not whole.differences and not whole.notes
    assert main(["convert", "verify", str(trained), str(tmp_path / "whole")]) == 0
    assert capsys.readouterr().out.endswith(f"all {whole.tensors} tensors agree\n")


def test_changed_tensors(changed, capsys):
    model, torch = changed

    def change(tensors):
        tensors[EMBEDDING] = tensors[EMBEDDING] + 1
        tensors[NORM][3] = tensors[NORM][3] + 0.5

    rewrite(torch, change)
    rows, width = tiny_config().text.vocab_size, tiny_config().text.hidden_size
    assert sorted(verify(model, torch).differences) == [
        f"{EMBEDDING}: shape ({rows}, {width}), {rows * width} of {rows * width} values differ, largest difference 1",
        f"{NORM}: shape ({width},), 1 of {width} values differ, largest difference 0.5",
    ]
    assert main(["convert", "verify", str(model), str(torch)]) == 1
    assert "2 differences; " in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("index", "value", "largest"), [(0, -0.0, "0"), (1, np.nan, "inf"), (1, -np.inf, "inf")])
def test_signed_zero_nan_and_infinity_are_differences(changed, index, value, largest):
    model, torch = changed
    rewrite(torch, lambda tensors: tensors[NORM].put(index, value))
    (difference,) = verify(model, torch).differences
    assert difference == f"{NORM}: shape (128,), 1 of 128 values differ, largest difference {largest}"


def test_missing_tensors_and_shape_mismatches(changed):
    model, torch = changed

    def change(tensors):
        del tensors[NORM]
        tensors["llm.model.norm.wait"] = np.zeros(3, np.float32)
        tensors[EMBEDDING] = tensors[EMBEDDING][:-1]

    rewrite(torch, change)
    rows, width = tiny_config().text.vocab_size, tiny_config().text.hidden_size
    assert verify(model, torch).differences == [
        f"{EMBEDDING}: shape ({rows}, {width}) in {model}, ({rows - 1}, {width}) in {torch}",
        f"{NORM}: only in {model}",
        f"llm.model.norm.wait: only in {torch}",
    ]


def test_a_changed_configuration(changed):
    model, torch = changed
    root = json.loads((torch / "config.json").read_text())
    root["text_config"]["rms_norm_eps"] = 1e-5
    root["max_tiles"] = 10
    (torch / "config.json").write_text(json.dumps(root))
    before = tiny_config()
    assert verify(model, torch).differences == [
        f"config.text.rms_norm_eps: {before.text.rms_norm_eps} in {model}, 1e-05 in {torch}",
        f"config.max_tiles: {before.max_tiles} in {model}, 10 in {torch}",
    ]


@pytest.mark.parametrize("cast", ["bfloat16", "float16"])
def test_a_cast_is_a_note_and_a_changed_value_a_difference(changed, cast, tmp_path):
    _, torch = changed
    model = tmp_path / "model"
    from_torch(torch, model, dtype=cast)
    report = verify(model, torch)
    types = f"{cast} in {model}, float32 in {torch}"
    assert not report.differences
    assert report.notes[1:] == [f"{report.tensors} tensors agree after a cast: {types}"]
    rewrite(torch, lambda tensors: tensors[NORM].put(0, 1000.0))
    (difference,) = verify(model, torch).differences
    assert difference == f"{NORM}: shape (128,), 1 of 128 values differ, largest difference 1e+03 ({types})"


def test_user_errors_are_one_line_with_exit_code_2(pair, tmp_path, capsys):
    with pytest.raises(UserError, match="no such directory"):
        verify(pair[0], tmp_path / "nothing")
    assert main(["convert", "verify", str(pair[1]), str(pair[1])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("omnivinci convert: ") and "no parameters" in error and error.count("\n") == 1


def test_the_module_runs_the_same_command(pair):
    run = [sys.executable, "-m", "conversion.verify", *map(str, pair)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0 and "tensors agree" in done.stdout, done.stderr
