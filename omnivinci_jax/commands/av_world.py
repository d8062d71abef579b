"""`omnivinci av_world`: the data sets of synthetic clips."""

import argparse
import os
from pathlib import Path

from omnivinci_jax.flags import add_command, positive


def add_commands(commands) -> None:
    """Adds the commands to the subparsers of a parser."""
    av_world = add_command(commands, "av_world", None, "generate data sets of synthetic clips")
    actions = av_world.add_subparsers(dest="action", required=True, metavar="ACTION")

    command = add_command(actions, "generate", _generate, "generate the data set of the demo (default action)")
    _data_set_flags(command)
    command.add_argument("--train_clips", type=int, default=1100)
    command.add_argument("--val_clips", type=int, default=60)
    command.add_argument("--held_out_clips", type=int, default=220)
    command.add_argument(
        "--asking", choices=("all", "rank"), default="all", help="rank: question kinds that `all` does not have"
    )

    command = add_command(actions, "curriculum", _curriculum, "generate the data set of the tiny curriculum")
    _data_set_flags(command)
    command.add_argument("--scale", type=float, default=1.0, help="factor for the number of rows")

    command = add_command(actions, "ablations", _ablations, "generate the data set of the ablations")
    _data_set_flags(command)
    command.add_argument("--scale", type=float, default=1.0, help="factor for the number of clips")
    command.add_argument("--paired", action="store_true", help="pair every colour of a clip with its own sound")

    command = add_command(actions, "reasoning", _reasoning, "generate questions to reason about, for GRPO")
    _data_set_flags(command)
    command.add_argument("--scale", type=float, default=1.0, help="factor for the number of clips")

    command = add_command(actions, "audit", _audit, "measure blind baselines on the held-out questions")
    command.add_argument("data", type=Path, help="folder of the data set")

    command = add_command(actions, "tokenizer", _tokenizer, "train the tokenizer of the tiny model")
    command.add_argument("--out", type=Path, required=True, help="folder to write")


def _data_set_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, help="a new folder, or that of an interrupted run")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes")


def _generate(arguments) -> int:
    from omnivinci_jax.av_world.generate import generate

    clips = {name: getattr(arguments, name) for name in ("train_clips", "val_clips", "held_out_clips")}
    generate(arguments.out, arguments.seed, workers=arguments.workers, asking=arguments.asking, **clips)
    return 0


def _curriculum(arguments) -> int:
    from omnivinci_jax.av_world.curriculum import write_curriculum
    from omnivinci_jax.av_world.extras import can_speak

    write_curriculum(arguments.out, arguments.seed, arguments.scale, arguments.workers)
    if not can_speak():
        print("espeak-ng is not installed: the data set has no speech")
    return 0


def _ablations(arguments) -> int:
    from omnivinci_jax.av_world.ablations import write_ablation_data

    write_ablation_data(arguments.out, arguments.paired, arguments.seed, arguments.scale, arguments.workers)
    return 0


def _reasoning(arguments) -> int:
    from omnivinci_jax.av_world.reasoning import write_reasoning_data

    write_reasoning_data(arguments.out, arguments.seed, arguments.scale, arguments.workers)
    return 0


def _audit(arguments) -> int:
    from omnivinci_jax.av_world.audit import audit_folder, markdown

    print(markdown(audit_folder(arguments.data)))
    return 0


def _tokenizer(arguments) -> int:
    from omnivinci_jax.av_world.tokenizer import write_tiny_tokenizer

    write_tiny_tokenizer(arguments.out)
    return 0
