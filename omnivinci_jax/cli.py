"""`omnivinci <command>`. Imports neither jax nor numpy, because each loader worker imports this module on start."""

import argparse
import io
import logging
import os
import sys

from absl import flags

from omnivinci_jax.commands import asking, av_world, data, model, training
from omnivinci_jax.data_engine import command as data_engine
from omnivinci_jax.downstream import command as downstream
from omnivinci_jax.errors import Preempted, UserError


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    0; 1 for a negative result (problems found, models that differ, a step that does not fit); 2 for an error
    that the user can fix; 75 (temporary failure) if the same command should be restarted; 130 for Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("omnivinci").setLevel(logging.INFO)
    # Orbax and Grain log errors there, with tracebacks, before they raise them.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Paths and texts may hold bytes that are no characters of the terminal's encoding.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags; this program has none
    if argv[:1] == ["av_world"] and argv[1:2] and argv[1].startswith("--") and argv[1] != "--help":
        argv = ["av_world", "generate", *argv[1:]]
    commands = parser()
    arguments, arguments.unparsed = commands.parse_known_args(argv)
    if arguments.unparsed and not arguments.keeps_unparsed:
        commands.error(f"unrecognized arguments: {' '.join(arguments.unparsed)}")
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(f"omnivinci {arguments.command}: {error}", file=sys.stderr)
        return 2
    except Preempted as notice:
        print(f"omnivinci {arguments.command}: {notice}", file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        print(f"omnivinci {arguments.command}: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    command = argparse.ArgumentParser(prog="omnivinci", description="Train, evaluate and query an omni-modal model.")
    commands = command.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in (training, data, model, asking, data_engine, downstream, av_world):
        room.add_commands(commands)
    return command


if __name__ == "__main__":
    sys.exit(main())
