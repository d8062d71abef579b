"""The commands that read data files and media."""

import os
from pathlib import Path

from omnivinci_jax import strict_json
from omnivinci_jax.flags import add_command, add_max_skipped_flag, local_file, path, positive


def add_commands(commands) -> None:
    """Adds the commands to the subparsers of a parser."""
    command = add_command(commands, "check", _check, "list every problem of a JSONL file and its media")
    command.add_argument("data", type=local_file)
    command.add_argument(
        "--model",
        type=path,
        help="model directory: read media, encode and measure conversations for this model; default: only read media, "
        "for the published 9B configuration",
    )

    command = add_command(commands, "shard", _shard, "write a JSONL file and its media as ArrayRecord shards")
    command.add_argument("data", type=local_file, help="JSONL file")
    command.add_argument(
        "--out", type=path, required=True, help="folder for the shards, on a disk or gs://; the same command resumes"
    )
    command.add_argument("--per_shard", type=positive, default=1000, help="conversations per shard")
    command.add_argument("--workers", type=positive, default=os.cpu_count() or 1)
    command.add_argument("--decoder", choices=("default", "tfio"), default="default", help="sound decoder")
    add_max_skipped_flag(command, 0.01)

    command = add_command(commands, "inspect", _inspect, "draw what the model sees of a file")
    command.add_argument("file")
    command.add_argument("--model", type=path, help="model directory; default: the published 9B configuration")
    command.add_argument("--out", type=Path, help="PNG to write; default: FILE.inspect.png in this folder")
    command.add_argument(
        "--audio_track", type=positive, metavar="N", help="sound track, from 1; default: the marked one"
    )


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
