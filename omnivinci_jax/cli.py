"""`omnivinci <command>`. Imports neither jax nor numpy, because each loader worker imports this module on start."""

import argparse
import io
import logging
import os
import sys
import time
from pathlib import Path

from absl import flags
from etils import epath

from omnivinci_jax import strict_json
from omnivinci_jax.data_engine import command as data_engine
from omnivinci_jax.downstream import command as convert_data
from omnivinci_jax.errors import Preempted, UserError, needs_extra
from omnivinci_jax.evaluation import flags as evaluation_flags
from omnivinci_jax.paths import expanded, is_remote
from omnivinci_jax.transcription import flags as transcription_flags

_MEDIA_FLAGS = {"--video": "video", "--audio": "sound", "--image": "image"}
_POSITIONS = "prompt before the media, after half of them (rounded down), or after all"
_CONVERSIONS = {
    "from-torch": "convert PyTorch files to a model directory",
    "to-torch": "convert a model directory to PyTorch files",
    "to-peft": "convert a run's adapters to PEFT's layout",
    "verify": "compare a model directory with PyTorch files, tensor by tensor",
}


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
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in ("train", "ablate", "index", "shardings", "plan", "data-engine"):
        arguments.config_arguments = rest
    elif arguments.command == "convert":
        arguments.convert_arguments = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="omnivinci", description="Train, evaluate and query an omni-modal model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _command(commands, "train", _train, "train a model as configured by --config FILE and --config.key=value")
    command.add_argument(
        "--workdir", type=_path, required=True, help="work directory; the same command resumes its run"
    )
    command.add_argument("--distributed", action="store_true", help="run as one of several processes (see launch/)")
    command.add_argument(
        "--profile_steps", type=_steps, default=range(0), metavar="FIRST:LAST", help="steps to trace for XProf"
    )

    command = _command(commands, "ablate", _ablate, "train the arms of an ablation and write a table and a plot")
    command.add_argument(
        "--workdir", type=_path, required=True, help="work directory of all tables; shared arms are trained once"
    )

    _command(commands, "index", _index, "index the data of a configuration: sizes and problems")

    command = _command(
        commands, "shardings", _shardings, "show how a configuration's parameters are sharded over the mesh"
    )
    command.add_argument("--devices", type=int, help="number of devices; default: those of this machine")

    command = _command(commands, "check", _check, "list every problem of a JSONL file and its media")
    command.add_argument("data", type=_local_file)
    command.add_argument(
        "--model",
        type=_path,
        help="model directory: read media, encode and measure conversations for this model; default: only read media, "
        "for the published 9B configuration",
    )

    command = _command(commands, "shard", _shard, "write a JSONL file and its media as ArrayRecord shards")
    command.add_argument("data", type=_local_file, help="JSONL file")
    command.add_argument(
        "--out", type=_path, required=True, help="folder for the shards, on a disk or gs://; the same command resumes"
    )
    command.add_argument("--per_shard", type=_positive, default=1000, help="conversations per shard")
    command.add_argument("--workers", type=_positive, default=os.cpu_count() or 1)
    command.add_argument("--decoder", choices=("default", "tfio"), default="default", help="sound decoder")
    _max_skipped_flag(command, 0.01)

    command = _command(commands, "evaluate", _evaluate, "measure the accuracy of a model on a data file")
    command.add_argument("--model", type=_path, help="model directory")
    command.add_argument("--data", type=_path, required=True, help="JSONL file, or folder of shards")
    command.add_argument("--out", type=_path, required=True, help="JSON file to write")
    command.add_argument("--drop", choices=("nothing", "sound", "vision"), default="nothing", help="stream to drop")
    command.add_argument("--rows", type=_positive, default=8, help="conversations per batch shard")
    _max_skipped_flag(command, 0.01)
    _mesh_flag(command, "all devices, parameters sharded (fsdp=-1); with another --metric, one device")
    evaluation_flags.add_flags(command)

    command = _command(commands, "transcribe", _transcribe, "transcribe sounds, or measure the word error rate")
    command.add_argument("--model", type=_path, help="model directory; default: transcribe with --recogniser alone")
    transcription_flags.add_flags(command)
    _max_skipped_flag(command, 0.01)
    _mesh_flag(command, "one device")

    command = _command(commands, "rag-data", _rag_data, "write conversations that teach a model to use references")
    command.add_argument("--model", type=_path, required=True, help="model directory")
    transcription_flags.add_rag_data_flags(command)
    _max_skipped_flag(command, 0.01)
    _mesh_flag(command, "one device")

    command = _command(commands, "add-control-tokens", _add_control_tokens, "give a model the tokens of --rag")
    command.add_argument("--model", type=Path, required=True, help="model directory")
    command.add_argument("--out", type=Path, required=True, help="model directory to create")

    command = _command(commands, "export", _export, "merge a run's adapters into a new model directory")
    command.add_argument(
        "--run", dest="workdir", type=_path, required=True, help="work directory of a run with adapters"
    )
    command.add_argument("--out", type=_path, required=True, help="model directory to create")
    _mesh_flag(command, "one device")

    command = _command(commands, "quantize", _quantize, "make a smaller model of int4, int8 or float8 weights")
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
    command.add_argument("--group_size", type=_positive, default=128, help="inputs that share a scale in int4")

    command = _command(commands, "generate", _generate, "answer a prompt about any mix of media, in the given order")
    _generation_flags(command)
    for flag, kind in _MEDIA_FLAGS.items():
        command.add_argument(flag, dest="media", action=_MediaAction, default=[], metavar="FILE", help=f"a {kind}")
    command.add_argument(
        "--audio_track", dest="audio_tracks", action=_TrackAction, default={}, type=_positive, metavar="N",
        help="sound track, from 1, of the --video or --audio before it; default: the one that the file marks",
    )  # fmt: skip
    command.add_argument("--prompt", default="", help="text; <image>, <video> and <sound> mark the positions of media")
    command.add_argument("--speech_prompt", action="append", default=[], metavar="FILE", help="a spoken prompt")
    command.add_argument("--prompt_position", choices=("prefix", "mid", "suffix"), default="suffix", help=_POSITIONS)
    command.add_argument("--samples", type=_positive, default=1, help="number of answers to sample")
    command.add_argument("--json", action="store_true", help="print each answer as one line of JSON")
    command.add_argument("--speak", type=Path, metavar="FILE.wav", help="speak the answer into a sound file")
    command.add_argument("--voice", default="", help="voice of --speak; default: the backend's")
    command.add_argument(
        "--speech_server", default="", metavar="URL", help="server with OpenAI's /v1/audio/speech to use"
    )
    command.add_argument("--speech_model", default="tts-1", help="speech model of that server")
    command.add_argument("--data", type=_local_file, help="answer every conversation of this JSONL file, as JSON lines")
    command.add_argument("--rows", type=_positive, default=8, help="with --data: batch size")
    _max_skipped_flag(command, 1.0)

    command = _command(commands, "chat", _chat, "chat with a model about files dropped into the terminal")
    _generation_flags(command)

    _serve_flags(_command(commands, "serve", _serve, "serve a model with OpenAI's API and a page to try it"))

    engine = _command(commands, "data-engine", data_engine.run, "make omni-modal conversations of a folder of videos")
    data_engine.add_flags(engine)

    command = _command(commands, "inspect", _inspect, "draw what the model sees of a file")
    command.add_argument("file")
    command.add_argument("--model", type=_path, help="model directory; default: the published 9B configuration")
    command.add_argument("--out", type=Path, help="PNG to write; default: FILE.inspect.png in this folder")
    command.add_argument(
        "--audio_track", type=_positive, metavar="N", help="sound track, from 1; default: the marked one"
    )

    command = _command(commands, "convert", _convert, "convert and compare PyTorch checkpoints")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in _CONVERSIONS.items():  # `conversion` parses their arguments
        actions.add_parser(name, help=text, add_help=False, allow_abbrev=False)

    convert_data.add_parsers(_command(commands, "convert-data", None, "turn published data sets into conversations"))

    command = _command(commands, "plan", _plan, "compile a training step for another machine")
    command.add_argument("--topology", required=True, help="for example v5e:8x8, v5p:4x4x4, v6e:8x8, h100:8 or h200:8")
    command.add_argument("--hlo", type=Path, help="file to write the compiled program to")

    _av_world_parsers(_command(commands, "av_world", None, "generate data sets of synthetic clips"))
    return parser


def _av_world_parsers(av_world: argparse.ArgumentParser) -> None:
    actions = av_world.add_subparsers(dest="action", required=True, metavar="ACTION")

    command = _command(actions, "generate", _av_world_generate, "generate the data set of the demo (default action)")
    _data_set_flags(command)
    command.add_argument("--train_clips", type=int, default=1100)
    command.add_argument("--val_clips", type=int, default=60)
    command.add_argument("--held_out_clips", type=int, default=220)
    command.add_argument(
        "--asking", choices=("all", "rank"), default="all", help="rank: question kinds that `all` does not have"
    )

    command = _command(actions, "curriculum", _av_world_curriculum, "generate the data set of the tiny curriculum")
    _data_set_flags(command)
    command.add_argument("--scale", type=float, default=1.0, help="factor for the number of rows")

    command = _command(actions, "ablations", _av_world_ablations, "generate the data set of the ablations")
    _data_set_flags(command)
    command.add_argument("--scale", type=float, default=1.0, help="factor for the number of clips")
    command.add_argument("--paired", action="store_true", help="pair every colour of a clip with its own sound")

    command = _command(actions, "reasoning", _av_world_reasoning, "generate questions to reason about, for GRPO")
    _data_set_flags(command)
    command.add_argument("--scale", type=float, default=1.0, help="factor for the number of clips")

    command = _command(actions, "audit", _av_world_audit, "measure blind baselines on the held-out questions")
    command.add_argument("data", type=Path, help="folder of the data set")

    command = _command(actions, "tokenizer", _av_world_tokenizer, "train the tokenizer of the tiny model")
    command.add_argument("--out", type=Path, required=True, help="folder to write")


def _data_set_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, help="a new folder, or that of an interrupted run")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="processes")


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(run=run)
    return command


class _MediaAction(argparse.Action):
    """Collects the media of all flags in one list, in command-line order."""

    def __call__(self, parser, namespace, values, option_string=None):
        assert option_string is not None
        namespace.media = [*namespace.media, (_MEDIA_FLAGS[option_string], values)]


class _TrackAction(argparse.Action):
    """Collects sound tracks by the index of their file in the list of media."""

    def __call__(self, parser, namespace, values, option_string=None):
        if not namespace.media or namespace.media[-1][0] == "image":
            parser.error("--audio_track N belongs after the --video or --audio whose sound track it chooses")
        namespace.audio_tracks = {**namespace.audio_tracks, len(namespace.media) - 1: values}


def _generation_flags(command: argparse.ArgumentParser) -> None:
    """Flags that `generate` and `chat` share."""
    command.add_argument("--model", type=_path, required=True, help="model directory")
    command.add_argument("--system", default="", help="system prompt; default: the published one")
    command.add_argument("--max_new_tokens", type=int, default=256, help="longest answer in tokens")
    command.add_argument("--temperature", type=float, default=0.0, help="0: greedy; 1: sample")
    command.add_argument("--top_k", type=int, default=0, help="sample from the K likeliest tokens; 0: from all")
    command.add_argument(
        "--top_p", type=float, default=1.0, help="sample from the likeliest tokens with this total probability"
    )
    command.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1: penalise repetition")
    command.add_argument("--seed", type=int, default=0, help="the same seed gives the same answer")
    command.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="text that ends an answer; may be repeated"
    )
    command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of activations")
    _mesh_flag(command, "one device")


def _serve_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", type=_path, required=True, help="model directory")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    command.add_argument("--port", type=int, default=8000, help="0: any free port")
    command.add_argument("--rows", type=_positive, default=16, help="answers that run at once")
    command.add_argument("--queue", type=_positive, default=64, help="answers that may wait; more are refused with 429")
    command.add_argument("--timeout", type=float, default=600.0, help="seconds that a request may take")
    command.add_argument("--media_dir", type=Path, help="folder whose files requests may name as file:// URLs")
    command.add_argument("--allow_urls", action="store_true", help="download http(s):// media from public addresses")
    command.add_argument("--max_body_mb", type=_positive, default=64, help="largest body of a request, in MiB")
    command.add_argument("--max_media_mb", type=_positive, default=256, help="largest media file, in MiB")
    command.add_argument("--max_pixels", type=_positive, default=50_000_000, help="of an image or a frame")
    command.add_argument("--max_seconds", type=float, default=3600.0, help="of a sound or a video")
    command.add_argument("--media_cache_mb", type=_positive, default=1024, help="cache of encoded media, in MiB")
    command.add_argument("--workers", type=_positive, default=2, help="processes that decode media")
    command.add_argument("--voice", default="", help="voice that speaks answers (espeak-ng's, or the speech server's)")
    command.add_argument("--speech_server", default="", metavar="URL", help="speak with its /v1/audio/speech")
    command.add_argument("--speech_model", default="tts-1", help="speech model of that server")
    command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of activations")
    _mesh_flag(command, "one device")


def _max_skipped_flag(command: argparse.ArgumentParser, default: float) -> None:
    command.add_argument(
        "--max_skipped",
        type=float,
        default=default,
        metavar="SHARE",
        help=f"stop if more than this share of the data file cannot be read; default: {default:g}",
    )


def _mesh_flag(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--mesh", metavar="AXIS=N,...", help=f"device mesh, for example data=1,tensor=4; default: {default}"
    )


def _steps(text: str) -> range:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST, for example 10:12")
    return range(int(first), int(last) + 1)


def _path(text: str) -> epath.Path:
    try:
        return expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _local_file(text: str) -> Path:
    path = _path(text)
    if is_remote(path):
        raise argparse.ArgumentTypeError(f"{text}: is in a bucket: download the file and give its path")
    return Path(path)


def _positive(text: str) -> int:
    if not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _make_mesh(text: str):
    """Makes the mesh of --mesh."""
    from omnivinci_jax.mesh.mesh import make_mesh
    from omnivinci_jax.settings import parse_mesh

    return make_mesh(parse_mesh(text))


def _train(arguments) -> int:
    from omnivinci_jax.settings import load_config

    config = load_config(arguments.config_arguments)
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

    print(ablate(load_config(arguments.config_arguments, AblationConfig), arguments.workdir, train))
    return 0


def _index(arguments) -> int:
    from omnivinci_jax.data.describe import describe_data
    from omnivinci_jax.settings import load_config

    print(describe_data(load_config(arguments.config_arguments)))
    return 0


def _shardings(arguments) -> int:
    from omnivinci_jax.settings import load_config
    from omnivinci_jax.train.shardings import describe_shardings

    print(describe_shardings(load_config(arguments.config_arguments), arguments.devices))
    return 0


def _check(arguments) -> int:
    from omnivinci_jax.config import OmniVinciConfig
    from omnivinci_jax.config_json import read_config
    from omnivinci_jax.data.check import check_file
    from omnivinci_jax.data.processor import MediaReader, Processor
    from omnivinci_jax.sequence.tokenizer import Tokenizer

    if arguments.model:
        reader = Processor(read_config(arguments.model / "config.json"), Tokenizer(arguments.model))
    else:
        reader = MediaReader(OmniVinciConfig())
    count, problems = check_file(arguments.data, reader)
    for problem in problems:
        print(problem)
    print(f"{arguments.data}: {count} conversations, {len(problems)} problem(s)")
    return 1 if problems else 0


def _shard(arguments) -> int:
    from omnivinci_jax.data.write_shards import write_shards

    manifest = write_shards(
        arguments.data, arguments.out, arguments.per_shard, arguments.workers, arguments.decoder, arguments.max_skipped
    )
    size = sum(map(sum, manifest["bytes"])) / 2**20
    print(f"{arguments.out}: {manifest['conversations']} conversations in {manifest['shards']} shards, {size:,.1f} MiB")
    return 0


def _evaluate(arguments) -> int:
    evaluation_flags.check_flags(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)  # fail before the work, not after it
    if arguments.metric != evaluation_flags.FORWARD:
        from omnivinci_jax.evaluation.command import run

        return run(arguments, arguments.mesh and _make_mesh(arguments.mesh))
    from omnivinci_jax.evaluation.accuracy import accuracy_table, evaluate_file
    from omnivinci_jax.evaluation.report import write_results

    started = time.monotonic()
    mesh = _make_mesh(arguments.mesh or "fsdp=-1")
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

    return run(arguments, arguments.mesh and _make_mesh(arguments.mesh))


def _rag_data(arguments) -> int:
    from omnivinci_jax.transcription.rag_data import run

    return run(arguments, arguments.mesh and _make_mesh(arguments.mesh))


def _add_control_tokens(arguments) -> int:
    from omnivinci_jax.transcription.control_tokens import add_control_tokens

    add_control_tokens(arguments.model, arguments.out)
    print(f"model: {arguments.out}")
    return 0


def _export(arguments) -> int:
    from omnivinci_jax.train.export import export

    export(arguments.workdir, arguments.out, arguments.mesh and _make_mesh(arguments.mesh))
    print(f"model: {arguments.out}")
    return 0


def _quantize(arguments) -> int:
    from omnivinci_jax.quantize.command import run

    return run(arguments)


def _generate(arguments) -> int:
    from omnivinci_jax.generate.command import run

    return run(arguments, arguments.mesh and _make_mesh(arguments.mesh))


def _chat(arguments) -> int:
    from omnivinci_jax.generate.chat import run

    return run(arguments, arguments.mesh and _make_mesh(arguments.mesh))


def _serve(arguments) -> int:
    with needs_extra("serve"):
        from omnivinci_jax.serve.command import run
    return run(arguments, arguments.mesh and _make_mesh(arguments.mesh))


def _inspect(arguments) -> int:
    from omnivinci_jax.config import OmniVinciConfig
    from omnivinci_jax.config_json import read_config
    from omnivinci_jax.data.inspect import draw_file
    from omnivinci_jax.data.shards import on_disk
    from omnivinci_jax.sequence.references import media_file

    config = read_config(arguments.model / "config.json") if arguments.model else OmniVinciConfig()
    item = media_file("video", arguments.file, "FILE", Path())  # the content decides its kind
    out = arguments.out or Path(f"{Path(item.path).name}.inspect.png")
    with on_disk(item) as file:
        print(strict_json.dumps(draw_file(Path(file.path), config, out, arguments.audio_track), indent=2))
    print(f"picture: {out}")
    return 0


def _convert(arguments) -> int:
    from conversion import from_torch, to_peft, to_torch, verify

    actions = {"from-torch": from_torch, "to-torch": to_torch, "to-peft": to_peft, "verify": verify}
    return actions[arguments.action].main(arguments.convert_arguments, f"omnivinci convert {arguments.action}")


def _plan(arguments) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # do not initialise this machine's accelerators
    from omnivinci_jax.planning import plan, topology
    from omnivinci_jax.settings import load_config

    if arguments.hlo and not arguments.hlo.absolute().parent.is_dir():
        raise UserError(f"--hlo: {arguments.hlo}: the parent folder does not exist")
    config = load_config(arguments.config_arguments)
    try:
        planned = plan.plan(config, topology.get_topology(arguments.topology), arguments.hlo)
        print(plan.describe(planned, config.data))
        planned.check_memory()
    except plan.DoesNotFit as error:
        print(f"omnivinci plan: {error}", file=sys.stderr)
        return 1
    return 0


def _av_world_generate(arguments) -> int:
    from omnivinci_jax.av_world.generate import generate

    clips = {name: getattr(arguments, name) for name in ("train_clips", "val_clips", "held_out_clips")}
    generate(arguments.out, arguments.seed, workers=arguments.workers, asking=arguments.asking, **clips)
    return 0


def _av_world_curriculum(arguments) -> int:
    from omnivinci_jax.av_world.curriculum import write_curriculum
    from omnivinci_jax.av_world.extras import can_speak

    write_curriculum(arguments.out, arguments.seed, arguments.scale, arguments.workers)
    if not can_speak():
        print("espeak-ng is not installed: the data set has no speech")
    return 0


def _av_world_ablations(arguments) -> int:
    from omnivinci_jax.av_world.ablations import write_ablation_data

    write_ablation_data(arguments.out, arguments.paired, arguments.seed, arguments.scale, arguments.workers)
    return 0


def _av_world_reasoning(arguments) -> int:
    from omnivinci_jax.av_world.reasoning import write_reasoning_data

    write_reasoning_data(arguments.out, arguments.seed, arguments.scale, arguments.workers)
    return 0


def _av_world_audit(arguments) -> int:
    from omnivinci_jax.av_world.audit import audit_folder, markdown

    print(markdown(audit_folder(arguments.data)))
    return 0


def _av_world_tokenizer(arguments) -> int:
    from omnivinci_jax.av_world.tokenizer import write_tiny_tokenizer

    write_tiny_tokenizer(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
