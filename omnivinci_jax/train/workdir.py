"""The work directory of a run: checks its configuration and claims it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import orbax.checkpoint as ocp
from etils import epath

from omnivinci_jax import strict_json
from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.mesh.processes import barrier, is_main
from omnivinci_jax.paths import atomic_file
from omnivinci_jax.settings import TrainConfig, from_mapping, to_mapping
from omnivinci_jax.train.claim import Claim, claim_workdir

CONFIG = "config.json"

# These say how a machine does the work, not what the work is: a run may resume with other values.
_MACHINE_KEYS = {"config.mesh", "config.data.workers", "config.data.cache"}


def without_machine_keys(values: dict, key: str = "config") -> dict:
    """Returns a configuration without the values that may change when a run resumes on another machine."""
    kept = {name: value for name, value in values.items() if f"{key}.{name}" not in _MACHINE_KEYS}
    return {
        name: without_machine_keys(value, f"{key}.{name}") if isinstance(value, dict) else value
        for name, value in kept.items()
    }


def read_workdir(workdir: epath.Path) -> TrainConfig:
    """Reads the configuration of the run in a work directory.

    Raises:
        UserError: the folder has no run.
    """
    if not (workdir / "checkpoints").is_dir() or not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir}: not a run's work directory, which has {CONFIG} and checkpoints")
    return from_mapping(TrainConfig, strict_json.read(workdir / CONFIG))


def check_workdir(workdir: epath.Path, config: TrainConfig) -> None:
    """Raises ConfigError if the folder has a run with another configuration, or something else."""
    path = workdir / CONFIG
    if path.exists():
        if not ocp.utils.checkpoint_steps(workdir / "checkpoints"):
            return  # no checkpoint yet, so nothing is lost
        # Convert to a configuration, so that keys added since the run began get their defaults.
        saved = from_mapping(TrainConfig, strict_json.read(path))
        old, new = (without_machine_keys(to_mapping(values)) for values in (saved, config))
        key = _first_difference(old, new, "config")
        if key:
            raise ConfigError(
                f"{workdir}: has a run with another configuration ({key}); "
                "give another --workdir, or the configuration in its config.json"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f"{workdir}: the folder is not empty and has no run; give another --workdir")


@contextmanager
def open_workdir(workdir: epath.Path, config: TrainConfig) -> Iterator[Claim]:
    """Claims the work directory until the block ends, and writes the configuration into it.

    Raises:
        ConfigError: another run uses the directory.
    """
    barrier("checked")  # no process writes before all have checked the folder
    if not is_main():
        barrier("claimed")
        yield Claim()
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with claim_workdir(workdir) as claim:
        with atomic_file(workdir / CONFIG) as part:
            part.write_text(json.dumps(to_mapping(config), indent=2) + "\n")
        barrier("claimed")
        yield claim


def _first_difference(old: object, new: object, key: str) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        differences = (_first_difference(old.get(name), new.get(name), f"{key}.{name}") for name in {**old, **new})
        return next(filter(None, differences), "")
    return "" if old == new else f"{key} is {new}, but was {old}"
