"""`omnivinci convert-data NAME`: its flags. Imports nothing heavy, because every command reads them."""

import argparse
from collections.abc import Callable
from pathlib import Path

from omnivinci_jax.flags import add_command, add_voice_flags


def add_commands(commands) -> None:
    """Adds `convert-data`, with an action for each data set."""
    command = add_command(commands, "convert-data", None, "turn published data sets into conversations")
    actions = command.add_subparsers(dest="action", required=True, metavar="NAME")

    action = _action(actions, "ucr", _ucr, "time series of the UCR archive as line plots")
    action.add_argument("train", type=Path, metavar="TRAIN.ts")
    action.add_argument("test", type=Path, metavar="TEST.ts")
    action.add_argument("--copies", type=int, default=0, help="noisy variants of each training series to add")
    _seed(action)

    action = _action(actions, "control_charts", _control_charts, "generated control charts of the paper's nine classes")
    _counts(action, train=3600, test=900)

    action = _action(actions, "wm811k", _wm811k, "wafer maps of WM-811K with one of its eight defects")
    action.add_argument("table", type=Path, metavar="LSWMD.pkl")

    action = _action(actions, "wafer_maps", _wafer_maps, "generated wafer maps of WM-811K's eight defects")
    _counts(action, train=3200, test=800)

    action = _action(actions, "r2r_ce", _r2r_ce, "R2R-CE's episodes as questions about the next action")
    action.add_argument("episodes", type=Path, metavar="SPLIT.json.gz")
    action.add_argument("actions", type=Path, metavar="SPLIT_gt.json.gz")
    action.add_argument("--frames", type=Path, required=True, help="folder with EPISODE/STEP.png (or .jpg)")
    action.add_argument("--instruction", choices=("speech", "text", "both"), default="speech")
    add_voice_flags(action)

    action = _action(actions, "pillar_world", _pillar_world, "a small world to navigate in: a guide's actions")
    action.add_argument("--episodes", type=int, default=400, help="default: 400")
    _seed(action)

    action = _action(actions, "covost2", _covost2, "CoVoST 2's speech translation")
    action.add_argument("table", type=Path, metavar="covost_v2.SOURCE_TARGET.SPLIT.tsv")
    action.add_argument("--clips", type=Path, required=True, help="folder of Common Voice's clips")

    action = _action(actions, "choices", _choices, "multiple-choice questions about videos of sports or medicine")
    action.add_argument("questions", type=Path, metavar="QUESTIONS.json")
    action.add_argument("--videos", type=Path, required=True, help="folder of the videos")
    action.add_argument("--categories", default="", metavar="A,B,...", help="refuse other categories; default: any")


def _action(actions, name: str, run: Callable[[argparse.Namespace], dict[str, int]], text: str):
    def print_counts(arguments: argparse.Namespace) -> int:
        for split, count in run(arguments).items():
            print(f"{arguments.out / split}.jsonl: {count} conversations")
        return 0

    action = add_command(actions, name, print_counts, text)
    action.add_argument("--out", type=Path, required=True, help="folder to write")
    return action


def _seed(action: argparse.ArgumentParser) -> None:
    action.add_argument("--seed", type=int, default=0, help="of everything drawn at random")


def _counts(action: argparse.ArgumentParser, train: int, test: int) -> None:
    _seed(action)
    action.add_argument("--train", type=int, default=train, help=f"training questions; default: {train}")
    action.add_argument("--test", type=int, default=test, help=f"test questions; default: {test}")


def _ucr(arguments: argparse.Namespace) -> dict[str, int]:
    from omnivinci_jax.downstream.time_series import convert

    return convert(arguments.train, arguments.test, arguments.out, arguments.copies, arguments.seed)


def _control_charts(arguments: argparse.Namespace) -> dict[str, int]:
    from omnivinci_jax.downstream.control_charts import generate

    return generate(arguments.out, arguments.train, arguments.test, arguments.seed)


def _wm811k(arguments: argparse.Namespace) -> dict[str, int]:
    from omnivinci_jax.downstream.wafer_maps import convert

    return convert(arguments.table, arguments.out)


def _wafer_maps(arguments: argparse.Namespace) -> dict[str, int]:
    from omnivinci_jax.downstream.wafer_maps import generate

    return generate(arguments.out, arguments.train, arguments.test, arguments.seed)


def _r2r_ce(arguments: argparse.Namespace) -> dict[str, int]:
    from omnivinci_jax.downstream.navigation import convert
    from omnivinci_jax.speech import voice_or_server

    voice = None
    if arguments.instruction != "text":
        voice = voice_or_server(arguments.voice, arguments.speech_server, arguments.speech_model)
    return convert(arguments.episodes, arguments.actions, arguments.frames, arguments.out, voice, arguments.instruction)


def _pillar_world(arguments: argparse.Namespace) -> dict[str, int]:
    from omnivinci_jax.downstream.pillar_world import generate

    return generate(arguments.out, arguments.episodes, arguments.seed)


def _covost2(arguments: argparse.Namespace) -> dict[str, int]:
    from omnivinci_jax.downstream.translation import convert

    return convert(arguments.table, arguments.clips, arguments.out)


def _choices(arguments: argparse.Namespace) -> dict[str, int]:
    from omnivinci_jax.downstream.choices import convert

    categories = tuple(name for name in arguments.categories.split(",") if name)
    return convert(arguments.questions, arguments.videos, categories, arguments.out)
