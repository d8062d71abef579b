"""Planning: chips, invalid topologies, and complete plans of the tiny model.

The compilers for TPUs and GPUs are separate packages; the same code can plan for CPU devices.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.planning.hardware import CHIPS, chip_of
from omnivinci_jax.planning.topology import get_topology, target_config
from tests.tiny import CONFIG, REPOSITORY, tiny_config

SMALL = (
    "--config.data.groups=4",
    "--config.data.capacity.slots=64",
    "--config.data.capacity.tiles=4",
    "--config.data.capacity.windows=2",
    "--config.data.capacity.clips=2",
)
# The command with this process's CPU devices instead of a TPU's, and a memory that is always too small.
ON_CPU = """
import sys, jax
from omnivinci_jax import cli
from omnivinci_jax.planning import hardware, topology
chip = hardware.Chip("cpu", ("cpu",), 1e12, 2**20, 1e11, 1e10, torus=0)
topology.get_topology = lambda name: topology.Topology(name, chip, jax.devices())
sys.exit(cli.main(["plan", *sys.argv[1:]]))
"""

# The plan's numbers in bytes, which the command rounds to GiB, and its text.
ROLLOUT_ON_CPU = """
import dataclasses, json, sys, jax
from omnivinci_jax.planning import hardware, plan, topology
from omnivinci_jax.settings import load_config
chip = hardware.Chip("cpu", ("cpu",), 1e12, 2**40, 1e11, 1e10, torus=0)
config = load_config([argument for argument in sys.argv[1:] if "--topology" not in argument])
planned = plan.plan(config, topology.Topology("cpu:4", chip, jax.devices()))
planned.check_memory()
text = plan.describe(planned, config.data)
print(json.dumps([dataclasses.asdict(planned.memory), dataclasses.asdict(planned.rollout), text]))
"""


@pytest.mark.parametrize(
    ("kind", "name"),
    [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("NVIDIA H100 80GB HBM3", "h100")],
)
def test_chips_by_jax_device_kind(kind, name):
    assert chip_of(kind).name == name


def test_unknown_chip():
    assert chip_of("cpu") is None


def test_an_h200_is_an_h100_with_other_memory():
    h100, h200 = (chip for chip in CHIPS if not chip.torus)
    ours, theirs = target_config(h100).split(), target_config(h200).split()
    assert target_config(h100) == (REPOSITORY / "omnivinci_jax" / "planning" / "h100.target_config.txtpb").read_text()
    changed = [(old, new) for old, new in zip(ours, theirs, strict=False) if old != new]
    assert (str(h100.memory), str(h200.memory)) in changed
    assert '"NVIDIA H200"' in target_config(h200)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p", r"write a chip \(v5e, v5p, v6e, h100, h200\) and its shape"),
        ("v9:2x2", "write a chip"),
        ("v5p:4x", "write a chip"),
        ("h100:16", "one host, 1 to 8"),
        ("h100:2x4", "one host, 1 to 8"),
    ],
)
def test_invalid_topologies(name, message):
    with pytest.raises(ConfigError, match=message):
        get_topology(name)


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def on_cpu(*overrides: str, program: str = ON_CPU) -> subprocess.CompletedProcess:
    arguments = [f"--config={CONFIG}", "--topology=cpu:4", *SMALL, *overrides]
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    return run(["-c", program, *arguments], JAX_PLATFORMS="cpu", XLA_FLAGS=flags)


def numbers(text: str) -> dict[str, float]:
    """Returns the first number of each line of a plan that starts with a name."""
    return {name: float(value) for name, value in re.findall(r"^ *([\w+ ]+?) {2,}([\d.e+]+)", text, re.MULTILINE)}


def test_a_plan_of_the_tiny_model_on_four_devices():
    result = on_cpu("--config.mesh.tensor=2", "--config.optimizer.name=adamw")  # Muon compiles twice as long
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1].startswith("omnivinci plan: cpu:4: the step does not fit: it needs 0.0")
    assert "cpu:4: 4 chips as data 1 x fsdp 2 x context 1 x tensor 2" in result.stdout
    plan = numbers(result.stdout)
    parts = ("parameters", "optimizer", "batch", "activations", "outputs", "program")
    assert plan["needed"] == pytest.approx(sum(plan[part] for part in parts), abs=0.05)
    assert plan["needed"] > plan["available"]
    assert plan["model"] == pytest.approx(sum(plan[part] for part in ("vision", "sound", "align", "decoder")), rel=0.02)
    assert plan["fsdp"] > 0 and plan["tensor"] > 0
    assert plan["all overlapped"] <= plan["none overlapped"]
    assert "unknown length" not in result.stdout


def test_a_plan_of_grpo_has_the_memory_of_update_and_rollout():
    grpo = ("objective=grpo", "align_weight=0.0", "grpo.prompts=4", "grpo.answers=8", "optimizer.name=adamw")
    small = ("data.groups=8", "microbatches=2", "model.text.num_hidden_layers=1", "model.audio.encoder_layers=1")
    result = on_cpu(*(f"--config.{value}" for value in (*grpo, *small)), program=ROLLOUT_ON_CPU)
    assert result.returncode == 0, result.stderr
    memory, rollout, text = json.loads(result.stdout.splitlines()[-1])
    config = tiny_config()
    # 32 answers on 4 devices, each with the least capacity and the slack of a prefill step.
    heads = config.text.num_key_value_heads * config.text.head_dim
    caches = 2 * heads * (1024 + 256) * 4 * 32 // 4
    assert rollout["rows"] == 32 and caches <= rollout["caches"] < 1.02 * caches
    # What trains, in the compute type, is copied for the reference; of it, the decoder is for the engine.
    assert 0 < rollout["decoder"] < memory["reference"] == pytest.approx(memory["optimizer"] / 2, rel=1e-3)
    assert memory["activations"] > 0 and rollout["temporaries"] > 0
    assert f"memory per chip in a rollout, {rollout['rows']} answers at once, GiB" in text


def test_groups_that_the_mesh_does_not_divide_exit_with_2():
    result = on_cpu("--config.data.groups=3")
    assert result.returncode == 2
    assert "config.data.groups is 3: it must be a multiple of config.mesh.data" in result.stderr


@pytest.mark.parametrize(
    ("topology", "package"), [("v5e:2x2", "libtpu"), ("v5p:2x2x1", "libtpu"), ("h100:4", "jax_plugins.xla_cuda12")]
)
def test_a_plan_of_the_tiny_model_for_another_machine(topology, package):
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        found = None
    if not found:
        pytest.skip(f"{package}, the compiler for {topology}, is not installed")
    result = run(["-m", "omnivinci_jax.cli", "plan", f"--config={CONFIG}", "--topology", topology, *SMALL])
    assert result.returncode == 0, result.stderr
    plan = numbers(result.stdout)
    assert 0 < plan["needed"] < plan["available"]
    assert plan["fsdp"] > 0
    assert "unknown length" not in result.stdout
