"""Runs every command of docs/finetune.md as written, from a PyTorch checkpoint to PyTorch checkpoints."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conversion.layouts import read_layout
from tests.tiny import REPOSITORY, tiny_tokenizer

PAGE = REPOSITORY / "docs" / "finetune.md"
# Appended to each `omnivinci train` to shorten it.
SMALL = (
    "--config.steps=2 --config.data.groups=1 --config.data.workers=0 --config.data.capacity.slots=512 "
    "--config.data.capacity.tiles=32 --config.data.capacity.windows=16 --config.data.cache=cache"
)


@pytest.fixture(scope="module")
def after_the_page(golden, av_world, environment, tmp_path_factory) -> Path:
    """A folder with a checkpoint and data after all commands of the page."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("configs", "conversion", "omnivinci_jax"):
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copytree(golden / "checkpoint_merged", folder / "checkpoint")
    for file in tiny_tokenizer().path.parent.iterdir():
        shutil.copy(file, folder / "checkpoint")
    (folder / "clips").symlink_to(av_world / "clips")
    lines = (av_world / "val.jsonl").read_text().splitlines(keepends=True)
    for name, kept in (("mine.jsonl", lines[:4]), ("mine_val.jsonl", lines[4:6])):
        (folder / name).write_text("".join(kept))
    (folder / "omnivinci").write_text(f'#!/bin/sh\nexec {sys.executable} -m omnivinci_jax.cli "$@"\n')
    (folder / "omnivinci").chmod(0o755)

    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line.partition(" #")[0] for line in lines if line and not line.startswith("python benchmarks/")]
    assert len(commands) == 9
    path = f"{folder}:{Path(sys.executable).parent}:{environment['PATH']}"
    for command in commands:
        command += f" {SMALL}" if command.startswith("omnivinci train") else ""
        done = subprocess.run(
            ["bash", "-c", command], env=environment | {"PATH": path}, cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return folder


def test_full_and_lora_give_pytorch_checkpoints_with_the_original_tensors(after_the_page, golden):
    before = read_layout(golden / "checkpoint_merged")
    for name in ("mine_torch", "mine_merged_torch"):
        after = read_layout(after_the_page / name)
        assert before.keys() <= after.keys()
        changed = {tensor for tensor in before if not _same(before[tensor], after[tensor])}
        trained = ("llm.", "mm_projector.", "sound_mm_projector.")
        assert changed and not [tensor for tensor in changed if not tensor.startswith(trained)]
        if name == "mine_merged_torch":
            assert {tensor.rpartition(".")[0].rpartition(".")[2] for tensor in changed if "layers" in tensor} == {
                "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
            }  # fmt: skip
    peft = json.loads((after_the_page / "mine_peft" / "adapter_config.json").read_text())
    assert (peft["r"], peft["lora_alpha"], len(peft["target_modules"])) == (16, 32.0, 3 * 7)
    assert json.loads((after_the_page / "runs" / "before.json").read_text())["counts"]


def _same(before, after) -> bool:
    """Whether the values agree up to the type: frozen parameters are saved in `config.dtype`."""
    a, b = before.read(), after.read()
    return a.shape == b.shape and bool((a.astype(b.dtype) == b).all())
