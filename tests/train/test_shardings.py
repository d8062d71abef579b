"""The description of a run's shardings: totals, and errors for a mesh or rules that do not fit."""

import re

import pytest

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.mesh import rules
from omnivinci_jax.settings import MeshConfig, load_config
from omnivinci_jax.train.shardings import describe_shardings
from tests.tiny import CONFIG, REPOSITORY


def settings(*overrides: str, config=CONFIG):
    return load_config([f"--config={config}", *overrides])


def sums(text: str) -> list[int]:
    """Number of parameters, and bytes per device: trainable, frozen, optimizer, total."""
    numbers = [int(n.replace(",", "")) for n in re.findall(r"[\d,]{4,}", text.split("\n\n")[1])]
    assert numbers[1] + numbers[2] + numbers[3] == numbers[4]
    return numbers


def test_totals_on_one_device():
    parameters, trainable, frozen, optimizer, _ = sums(describe_shardings(settings(), 1))
    assert trainable + frozen == 4 * parameters
    assert 4 * parameters < trainable + optimizer < 12 * parameters  # Muon keeps one moment, AdamW two


def test_the_9b_model_is_sharded_evenly_over_64_devices():
    config = settings(
        "--config.mesh.context=2", "--config.mesh.tensor=4", config=REPOSITORY / "configs" / "omnivinci_9b.py"
    )
    text = describe_shardings(config, 64)
    assert "data 1 x fsdp 8 x context 2 x tensor 4" in text
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if "/" in line}
    kernel = ["28x3584x18944", "float32", f"{28 * 3584 * 18944 * 4 // 64:,}", "-,", "fsdp+context,", "tensor"]
    assert lines["llm/layers/mlp/up_proj/kernel"] == kernel
    parameters, *_, total = sums(text)
    assert total < 1.02 * 12 * parameters / 64


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(tensor=3), r"llm/.*dimension \w+ of \d+ does not divide over config\.mesh\.tensor = 3"),
        (MeshConfig(fsdp=5), r"config\.mesh is .*fsdp 5.*does not multiply to 12 device"),
    ],
)
def test_a_mesh_that_does_not_fit_gives_one_line(mesh, message):
    overrides = [f"--config.mesh.{name}={value}" for name, value in vars(mesh).items()]
    with pytest.raises(ConfigError, match=message):
        describe_shardings(settings(*overrides), 12)


def test_two_dimensions_on_one_mesh_axis_are_an_error(monkeypatch):
    clash = tuple((name, "fsdp" if name == "mlp" else axes) for name, axes in rules.RULES)
    monkeypatch.setattr(rules, "RULES", clash)
    with pytest.raises(ConfigError, match=r"dimension \w+ and dimension \w+ are both on mesh axis fsdp"):
        describe_shardings(settings(), 1)
