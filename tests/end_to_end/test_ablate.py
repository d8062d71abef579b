"""`omnivinci ablate`: shared arms are trained once, and results go into a table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from etils import epath

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.evaluation.ablation import AblationConfig, Arm
from omnivinci_jax.evaluation.ablation import ablate as ablate_arms
from omnivinci_jax.run import train
from omnivinci_jax.settings import load_config
from tests.end_to_end.commands import BATCH, MODEL, command, run
from tests.tiny import REPOSITORY, tiny_settings

TABLE = """
from tests.tiny import tiny_settings
from omnivinci_jax.evaluation.ablation import AblationConfig, Arm
from omnivinci_jax.settings import to_config_dict

def get_config():
    arms = Arm("average", {{"model": {{"audio_compression": "average"}}}}), Arm("max", {{}})
    return to_config_dict(AblationConfig({title!r}, tiny_settings(), arms[{first}:], 2, ("heard",), costs=True))
"""


def ablate(av_world: Path, folder: Path, title: str, first: int, environment: dict[str, str]) -> str:
    """The table that the command prints."""
    config = folder / "config.py"
    config.write_text(TABLE.format(title=title, first=first))
    overrides = [flag.replace("--config.", "--config.train.") for flag in (*MODEL, *BATCH)]
    overrides += [f"--config.train.data.{name}={av_world / name}.jsonl" for name in ("train", "val", "held_out")]
    overrides += [f"--config.train.data.cache={av_world / 'cache'}", "--config.train.steps=2"]
    done = run(command("ablate", "--config", config, "--workdir", folder / "out", *overrides), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout[done.stdout.index("| arm |") :]


def results(folder: Path) -> list[Path]:
    return sorted((folder / "out" / "arms").glob("*/seed_*/results.json"))


def test_arms_are_trained_once_and_compared(av_world, tmp_path, environment):
    table = ablate(av_world, tmp_path, "Pooling of sounds", 0, environment)
    runs = results(tmp_path)
    assert len(runs) == 4 and len({run.parent.parent for run in runs}) == 2
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    names, *arms = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert names == ["arm", "heard", "all questions", "sound tokens a minute", "first token, ms"]
    assert [arm[0] for arm in arms] == ["average", "max"]
    found = [json.loads(run.read_text())["overall"] for run in runs]
    assert {arm[2].split(" ± ")[0] for arm in arms} == {f"{50 * (a + b):.1f}" for a, b in (found[:2], found[2:])}
    assert all(float(arm[-1]) > 0 and arm[-2] == "300" for arm in arms)  # 10 windows of 30 tokens
    assert table.strip() in (tmp_path / "out" / "pooling_of_sounds.md").read_text()
    assert (tmp_path / "out" / "pooling_of_sounds.png").stat().st_size > 10_000

    before = [run.stat().st_mtime_ns for run in runs]
    assert "| max |" in ablate(av_world, tmp_path, "Other", 1, environment)  # its arm is already trained
    assert [run.stat().st_mtime_ns for run in results(tmp_path)] == before


@pytest.mark.parametrize("table", ["table1", "table2", "table18", "crte"])
def test_the_papers_tables_are_configurations(table):
    config = load_config(["--config", str(REPOSITORY / "configs" / "ablations" / f"{table}.py")], AblationConfig)
    runs = [config.run(arm, 0) for arm in config.arms]
    assert len(set(map(str, runs))) == len(runs) >= 3 and config.seeds == 3
    baseline = {run.optimizer for run in runs}, {run.steps for run in runs}, {run.data.capacity for run in runs}
    assert all(len(values) == 1 for values in baseline)  # no arm is tuned separately


def test_unknown_kinds_fail_before_training(av_world, tmp_path):
    config = AblationConfig("x", tiny_settings(), (Arm("max", {}),), kinds=("smelt",))
    data = replace(config.train.data, held_out=str(av_world / "held_out.jsonl"))
    with pytest.raises(ConfigError, match=r"config\.kinds: 'smelt': .*held_out.jsonl has no such question"):
        ablate_arms(replace(config, train=replace(config.train, data=data)), epath.Path(tmp_path), train)


def test_invalid_changes_are_named(tmp_path):
    (tmp_path / "config.py").write_text(TABLE.format(title="x", first=0).replace("audio_compression", "compression"))
    with pytest.raises(ConfigError, match=r"config\.arms\.average\.model\.compression: no such key"):
        load_config(["--config", str(tmp_path / "config.py")], AblationConfig)
