"""A GRPO run in a process of its own, or several that go on with it one after the other and kill themselves.

python -m tests.rl.killed CONFIG.json WORKDIR MESH [save|update|rollout]..., where MESH is as for --mesh.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from etils import epath

from omnivinci_jax import strict_json
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.rl import grpo
from omnivinci_jax.rl.rewards import BUILT_IN, Answered
from omnivinci_jax.run import train
from omnivinci_jax.settings import TrainConfig, from_mapping, parse_mesh
from omnivinci_jax.train.checkpoints import Checkpoints


def vowels(answered: Answered) -> float:
    return sum(letter in "aeiou" for letter in answered.text) / 10


def has_a(answered: Answered) -> float:
    return 1.0 if "a" in answered.text else 0.0


def killing(function: Callable, calls: int) -> Callable:
    """Returns a function that also kills this process once it has been called so often."""
    count = 0

    def wrapped(*arguments: object) -> object:
        nonlocal count
        result, count = function(*arguments), count + 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def kill_after(owner: type, name: str, calls: int) -> None:
    setattr(owner, name, killing(getattr(owner, name), calls))


def run(config: TrainConfig, workdir: str, when: str = "") -> None:
    if when == "save":
        kill_after(Checkpoints, "save", 1)  # which writes its files in the background
    elif when == "update":
        repeat = grpo.repeated
        grpo.repeated = lambda update, updates: repeat(killing(update, 1), updates)  # the first of two updates
    elif when == "rollout":
        kill_after(Engine, "encode", 2)  # of four prompts
    train(config, epath.Path(workdir))


def main(config_file: str, workdir: str, mesh: str, *kills: str) -> None:
    config = from_mapping(TrainConfig, strict_json.read(Path(config_file)))
    config = replace(config, mesh=parse_mesh(mesh))
    BUILT_IN.update(vowels=vowels, format=has_a)
    for when in kills:
        if not (child := os.fork()):  # JAX has not started its threads yet
            run(config, workdir, when)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, when
    if not kills:
        run(config, workdir)


if __name__ == "__main__":
    main(*sys.argv[1:])
