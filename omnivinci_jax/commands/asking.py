"""The commands that ask a model: `generate`, `chat` and `serve`."""

import argparse
from pathlib import Path

from omnivinci_jax.commands.mesh import flag_mesh
from omnivinci_jax.errors import needs_extra
from omnivinci_jax.flags import (
    add_command,
    add_dtype_flag,
    add_max_skipped_flag,
    add_mesh_flag,
    add_model_flag,
    add_voice_flags,
    local_file,
    positive,
)

_MEDIA_FLAGS = {"--video": "video", "--audio": "sound", "--image": "image"}
_POSITIONS = "prompt before the media, after half of them (rounded down), or after all"


def add_commands(commands) -> None:
    """Adds the commands to the subparsers of a parser."""
    command = add_command(commands, "generate", _generate, "answer a prompt about any mix of media, in the given order")
    _generation_flags(command)
    for flag, kind in _MEDIA_FLAGS.items():
        command.add_argument(flag, dest="media", action=_MediaAction, default=[], metavar="FILE", help=f"a {kind}")
    command.add_argument(
        "--audio_track", dest="audio_tracks", action=_TrackAction, default={}, type=positive, metavar="N",
        help="sound track, from 1, of the --video or --audio before it; default: the one that the file marks",
    )  # fmt: skip
    command.add_argument("--prompt", default="", help="text; <image>, <video> and <sound> mark the positions of media")
    command.add_argument("--speech_prompt", action="append", default=[], metavar="FILE", help="a spoken prompt")
    command.add_argument("--prompt_position", choices=("prefix", "mid", "suffix"), default="suffix", help=_POSITIONS)
    command.add_argument("--samples", type=positive, default=1, help="number of answers to sample")
    command.add_argument("--json", action="store_true", help="print each answer as one line of JSON")
    command.add_argument("--speak", type=Path, metavar="FILE.wav", help="speak the answer into a sound file")
    add_voice_flags(command)
    command.add_argument("--data", type=local_file, help="answer every conversation of this JSONL file, as JSON lines")
    command.add_argument("--rows", type=positive, default=8, help="with --data: batch size")
    add_max_skipped_flag(command, 1.0)

    command = add_command(commands, "chat", _chat, "chat with a model about files dropped into the terminal")
    _generation_flags(command)

    command = add_command(commands, "serve", _serve, "serve a model with OpenAI's API and a page to try it")
    add_model_flag(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    command.add_argument("--port", type=int, default=8000, help="0: any free port")
    command.add_argument("--rows", type=positive, default=16, help="answers that run at once")
    command.add_argument("--max_length", type=positive, default=8192, help="positions of a prompt with its answer")
    command.add_argument("--queue", type=positive, default=64, help="answers that may wait; more are refused with 429")
    command.add_argument("--timeout", type=float, default=600.0, help="seconds that a request may take")
    command.add_argument("--media_dir", type=Path, help="folder whose files requests may name as file:// URLs")
    command.add_argument("--allow_urls", action="store_true", help="download http(s):// media from public addresses")
    command.add_argument("--max_body_mb", type=positive, default=64, help="largest body of a request, in MiB")
    command.add_argument("--max_media_mb", type=positive, default=256, help="largest media file, in MiB")
    command.add_argument("--max_pixels", type=positive, default=50_000_000, help="of an image or a frame")
    command.add_argument("--max_seconds", type=float, default=3600.0, help="of a sound or a video")
    command.add_argument("--media_cache_mb", type=positive, default=1024, help="cache of encoded media, in MiB")
    command.add_argument("--workers", type=positive, default=2, help="processes that decode media")
    add_voice_flags(command)
    add_dtype_flag(command)
    add_mesh_flag(command)


def _generation_flags(command: argparse.ArgumentParser) -> None:
    """Flags that `generate` and `chat` share."""
    add_model_flag(command)
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
    add_dtype_flag(command)
    add_mesh_flag(command)


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


def _generate(arguments) -> int:
    from omnivinci_jax.generate.command import run

    return run(arguments, flag_mesh(arguments))


def _chat(arguments) -> int:
    from omnivinci_jax.generate.chat import run

    return run(arguments, flag_mesh(arguments))


def _serve(arguments) -> int:
    with needs_extra("serve"):
        from omnivinci_jax.serve.command import run
    return run(arguments, flag_mesh(arguments))
