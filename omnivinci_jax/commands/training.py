"""The commands that train, and those that look at a training configuration."""

import argparse
import sys
from functools import partial
from pathlib import Path

from omnivinci_jax.errors import UserError
from omnivinci_jax.flags import add_command, path


def add_commands(commands) -> None:
    """Adds the commands to the subparsers of a parser."""
    add = partial(add_command, commands, keeps_unparsed=True)  # settings: --config FILE and --config.key=value

    command = add("train", _train, "train a model as configured by --config FILE and --config.key=value")
    command.add_argument("--workdir", type=path, required=True, help="work directory; the same command resumes its run")
    command.add_argument("--distributed", action="store_true", help="run as one of several processes (see launch/)")
    command.add_argument(
        "--profile_steps", type=_steps, default=range(0), metavar="FIRST:LAST", help="steps to trace for XProf"
    )

    command = add("ablate", _ablate, "train the arms of an ablation and write a table and a plot")
    command.add_argument(
        "--workdir", type=path, required=True, help="work directory of all tables; shared arms are trained once"
    )

    add("index", _index, "index the data of a configuration: sizes and problems")

    command = add("shardings", _shardings, "show how a configuration's parameters are sharded over the mesh")
    command.add_argument("--devices", type=int, help="number of devices; default: those of this machine")

    command = add("plan", _plan, "compile a training step for another machine")
    command.add_argument("--topology", required=True, help="for example v5e:8x8, v5p:4x4x4, v6e:8x8, h100:8 or h200:8")
    command.add_argument("--hlo", type=Path, help="file to write the compiled program to")


def _steps(text: str) -> range:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST, for example 10:12")
    return range(int(first), int(last) + 1)


def _train(arguments) -> int:
    from omnivinci_jax.settings import load_config

    config = load_config(arguments.unparsed)
    if arguments.distributed:
        from omnivinci_jax.mesh.processes import join

        join()
    from omnivinci_jax.run import train

    train(config, arguments.workdir, arguments.profile_steps)
    return 0


def _ablate(arguments) -> int:
    from omnivinci_jax.evaluation.ablation import AblationConfig, ablate
    from omnivinci_jax.run import train
    from omnivinci_jax.settings import load_config

    print(ablate(load_config(arguments.unparsed, AblationConfig), arguments.workdir, train))
    return 0


def _index(arguments) -> int:
    from omnivinci_jax.data.describe import describe_data
    from omnivinci_jax.settings import load_config

    print(describe_data(load_config(arguments.unparsed)))
    return 0


def _shardings(arguments) -> int:
    from omnivinci_jax.settings import load_config
    from omnivinci_jax.train.shardings import describe_shardings

    print(describe_shardings(load_config(arguments.unparsed), arguments.devices))
    return 0


def _plan(arguments) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # do not initialise this machine's accelerators
    from omnivinci_jax.planning import plan, topology
    from omnivinci_jax.settings import load_config

    if arguments.hlo and not arguments.hlo.absolute().parent.is_dir():
        raise UserError(f"--hlo: {arguments.hlo}: the parent folder does not exist")
    config = load_config(arguments.unparsed)
    try:
        planned = plan.plan(config, topology.get_topology(arguments.topology), arguments.hlo)
        print(plan.describe(planned, config.data))
        planned.check_memory()
    except plan.DoesNotFit as error:
        print(f"omnivinci plan: {error}", file=sys.stderr)
        return 1
    return 0
