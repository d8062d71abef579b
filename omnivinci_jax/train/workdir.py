"""The work directory of a run: which configuration it holds, and that one run alone is at it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import orbax.checkpoint as ocp
from etils import epath

from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.mesh.processes import barrier, is_main
from omnivinci_jax.paths import atomic_file
from omnivinci_jax.settings import TrainConfig, from_mapping, to_mapping
from omnivinci_jax.train.claim import Claim, sole_run

CONFIG = "config.json"

# What says how a machine does the work, and not what the work is: a run goes on with other values.
_OF_THE_MACHINE = {"config.mesh", "config.data.workers", "config.data.cache"}


def without_machine(values: dict, key: str = "config") -> dict:
    """A configuration's values but for those with which the same run may go on elsewhere."""
    kept = {name: value for name, value in values.items() if f"{key}.{name}" not in _OF_THE_MACHINE}
    return {n: without_machine(value, f"{key}.{n}") if isinstance(value, dict) else value for n, value in kept.items()}


def read_workdir(workdir: epath.Path) -> TrainConfig:
    """The configuration of the run that a work directory holds.

    Raises:
        UserError: no run is there.
    """
    if not (workdir / "checkpoints").is_dir() or not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir}: no run is there (a folder with {CONFIG} and checkpoints)")
    return from_mapping(TrainConfig, json.loads((workdir / CONFIG).read_text()))


def check_workdir(workdir: epath.Path, config: TrainConfig) -> None:
    """Raises ConfigError for a folder that holds a run of another configuration, or something else."""
    path = workdir / CONFIG
    if path.exists():
        if not ocp.utils.checkpoint_steps(workdir / "checkpoints"):
            return  # a first try: nothing is lost with another
        # Read as a configuration, so that a key that the run did not know yet has its default.
        saved = from_mapping(TrainConfig, json.loads(path.read_text()))
        old, new = (without_machine(to_mapping(values)) for values in (saved, config))
        key = _first_difference(old, new, "config")
        if key:
            raise ConfigError(
                f"{workdir}: it holds a run of another configuration ({key}); "
                "give another --workdir, or the configuration in its config.json"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f"{workdir}: the folder is not empty and holds no run; give another --workdir")


@contextmanager
def claimed(workdir: epath.Path, config: TrainConfig) -> Iterator[Claim]:
    """Holds the work directory, with the configuration noted in it, while the run lives.

    Raises:
        ConfigError: another run holds it.
    """
    barrier("checked")  # nobody writes before all have seen that the folder is theirs
    if not is_main():
        barrier("claimed")
        yield Claim()
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with sole_run(workdir) as claim:
        with atomic_file(workdir / CONFIG) as part:
            part.write_text(json.dumps(to_mapping(config), indent=2) + "\n")
        barrier("claimed")
        yield claim


def _first_difference(old: object, new: object, key: str) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        differences = (_first_difference(old.get(name), new.get(name), f"{key}.{name}") for name in {**old, **new})
        return next(filter(None, differences), "")
    return "" if old == new else f"{key} is {new}, there it is {old}"
