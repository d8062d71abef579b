"""`omnivinci convert-data NAME`: its flags. Imports nothing heavy, because every command reads them."""

import argparse
from collections.abc import Callable
from pathlib import Path


def add_parsers(command: argparse.ArgumentParser) -> None:
    """Adds a sub-command for each data set."""
    actions = command.add_subparsers(dest="action", required=True, metavar="NAME")

    action = _action(actions, "ucr", _ucr, "time series of the UCR archive as line plots")
    action.add_argument("train", type=Path, metavar="TRAIN.ts")
    action.add_argument("test", type=Path, metavar="TEST.ts")
    action.add_argument("--copies", type=int, default=0, help="noisy variants of each training series to add")

    action = _action(actions, "control_charts", _control_charts, "generated control charts of the paper's nine classes")
    _counts(action, train=3600, test=900)

    action = _action(actions, "wm811k", _wm811k, "wafer maps of WM-811K with one of its eight defects")
    action.add_argument("table", type=Path, metavar="LSWMD.pkl")

    action = _action(actions, "wafer_maps", _wafer_maps, "generated wafer maps of WM-811K's eight defects")
    _counts(action, train=3200, test=800)


def _action(actions, name: str, run: Callable[[argparse.Namespace], dict[str, int]], text: str):
    def print_counts(arguments: argparse.Namespace) -> int:
        for split, count in run(arguments).items():
            print(f"{arguments.out / split}.jsonl: {count} questions")
        return 0

    action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
    action.add_argument("--out", type=Path, required=True, help="folder to write")
    action.add_argument("--seed", type=int, default=0, help="of everything drawn at random")
    action.set_defaults(run=print_counts)
    return action


def _counts(action: argparse.ArgumentParser, train: int, test: int) -> None:
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
