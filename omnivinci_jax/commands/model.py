"""The commands that measure a model directory or make another from it."""

import logging
import time
from pathlib import Path

from omnivinci_jax.commands.mesh import flag_mesh, text_mesh
from omnivinci_jax.evaluation import flags as evaluation_flags
from omnivinci_jax.flags import add_command, add_max_skipped_flag, add_mesh_flag, add_model_flag, path, positive
from omnivinci_jax.transcription import flags as transcription_flags

_CONVERSIONS = {
    "from-torch": "convert PyTorch files to a model directory",
    "to-torch": "convert a model directory to PyTorch files",
    "to-peft": "convert a run's adapters to PEFT's layout",
    "verify": "compare a model directory with PyTorch files, tensor by tensor",
}


def add_commands(commands) -> None:
    """Adds the commands to the subparsers of a parser."""
    command = add_command(commands, "evaluate", _evaluate, "measure the accuracy of a model on a data file")
    command.add_argument("--model", type=path, help="model directory")
    command.add_argument("--data", type=path, required=True, help="JSONL file, or folder of shards")
    command.add_argument("--out", type=path, required=True, help="JSON file to write")
    command.add_argument("--drop", choices=("nothing", "sound", "vision"), default="nothing", help="stream to drop")
    command.add_argument("--rows", type=positive, default=8, help="conversations per batch shard")
    add_max_skipped_flag(command, 0.01)
    add_mesh_flag(command, "all devices, parameters sharded (fsdp=-1); with another --metric, one device")
    evaluation_flags.add_flags(command)

    command = add_command(commands, "transcribe", _transcribe, "transcribe sounds, or measure the word error rate")
    command.add_argument("--model", type=path, help="model directory; default: transcribe with --recogniser alone")
    transcription_flags.add_flags(command)
    add_max_skipped_flag(command, 0.01)
    add_mesh_flag(command)

    command = add_command(commands, "rag-data", _rag_data, "write conversations that teach a model to use references")
    add_model_flag(command)
    transcription_flags.add_rag_data_flags(command)
    add_max_skipped_flag(command, 0.01)
    add_mesh_flag(command)

    command = add_command(commands, "add-control-tokens", _add_control_tokens, "give a model the tokens of --rag")
    command.add_argument("--model", type=Path, required=True, help="model directory")
    command.add_argument("--out", type=Path, required=True, help="model directory to create")

    command = add_command(commands, "export", _export, "merge a run's adapters into a new model directory")
    command.add_argument(
        "--run", dest="workdir", type=path, required=True, help="work directory of a run with adapters"
    )
    command.add_argument("--out", type=path, required=True, help="model directory to create")
    add_mesh_flag(command)

    command = add_command(commands, "quantize", _quantize, "make a smaller model of int4, int8 or float8 weights")
    command.add_argument("--model", type=Path, required=True, help="model directory")
    command.add_argument("--out", type=Path, required=True, help="model directory to create; the same command resumes")
    command.add_argument(
        "--recipe", choices=("paper", "w4a16", "w8a8", "fp8"), default="paper",
        help="paper: int8 towers and int4 decoder; w4a16: int4 decoder; w8a8, fp8: towers and decoder in 8 bits",
    )  # fmt: skip
    command.add_argument(
        "--calibration", type=Path, help="JSONL file, or folder of shards, with images or video, and sound"
    )
    command.add_argument(
        "--method", choices=("rtn", "calibrated"),
        help="rtn: round to nearest; calibrated: AWQ and SmoothQuant; default: calibrated, for fp8 rtn",
    )  # fmt: skip
    command.add_argument(
        "--modules", action="append", default=[], metavar="REGEX",
        help="dense layers to quantize, for example 'llm/(layers/.*|lm_head)'; may be repeated; default: the recipe's",
    )  # fmt: skip
    command.add_argument("--group_size", type=positive, default=128, help="inputs that share a scale in int4")

    command = add_command(commands, "convert", _convert, "convert and compare PyTorch checkpoints", keeps_unparsed=True)
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in _CONVERSIONS.items():  # `conversion` parses their arguments
        actions.add_parser(name, help=text, add_help=False, allow_abbrev=False)


def _evaluate(arguments) -> int:
    evaluation_flags.check_flags(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)  # fail before the work, not after it
    if arguments.metric != evaluation_flags.FORWARD:
        from omnivinci_jax.evaluation.command import run

        return run(arguments, flag_mesh(arguments))
    from omnivinci_jax.evaluation.accuracy import accuracy_table, evaluate_file
    from omnivinci_jax.evaluation.report import write_results

    started = time.monotonic()
    mesh = text_mesh(arguments.mesh or "fsdp=-1")
    evaluation = evaluate_file(
        arguments.model, arguments.data, arguments.drop, arguments.rows, mesh, arguments.max_skipped
    )
    write_results(arguments.out, evaluation, time.monotonic() - started)
    print(accuracy_table(evaluation))
    for problem in evaluation.skipped:
        logging.getLogger("omnivinci").warning("skipped: %s", problem)
    return 0


def _transcribe(arguments) -> int:
    from omnivinci_jax.transcription.command import run

    return run(arguments, flag_mesh(arguments))


def _rag_data(arguments) -> int:
    from omnivinci_jax.transcription.rag_data import run

    return run(arguments, flag_mesh(arguments))


def _add_control_tokens(arguments) -> int:
    from omnivinci_jax.transcription.control_tokens import add_control_tokens

    add_control_tokens(arguments.model, arguments.out)
    print(f"model: {arguments.out}")
    return 0


def _export(arguments) -> int:
    from omnivinci_jax.train.export import export

    export(arguments.workdir, arguments.out, flag_mesh(arguments))
    print(f"model: {arguments.out}")
    return 0


def _quantize(arguments) -> int:
    from omnivinci_jax.quantize.command import run

    return run(arguments)


def _convert(arguments) -> int:
    from conversion import from_torch, to_peft, to_torch, verify

    actions = {"from-torch": from_torch, "to-torch": to_torch, "to-peft": to_peft, "verify": verify}
    return actions[arguments.action].main(arguments.unparsed, f"omnivinci convert {arguments.action}")
