"""The flags of `omnivinci evaluate` for metrics of generated answers. Does not import jax."""

import argparse
from argparse import Namespace
from pathlib import Path

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.flags import add_dtype_flag

FORWARD = "tokens"  # the metric of one forward pass, without generation
METRICS = (FORWARD, "exact", "choice", "likelihood", "string_match", "relaxed", "anls", "vqa", "wer", "bleu")
RECOGNISER = {"recogniser": "", "recogniser_model": "whisper-1", "candidates": 1}
_DEFAULTS = {
    **RECOGNISER,
    "prompt": "",
    "max_new_tokens": 64,
    "frames": None,
    "dtype": "float32",
    "normalizer": "english",
    "bleu_tokenizer": "13a",
    "mmar": None,
    "mmau": None,
    "answers": None,
}
_OF_A_MODEL = ("prompt", "max_new_tokens", "frames", "dtype", "recogniser", "recogniser_model", "candidates")


def add_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags. Those not given are None until `check_flags`."""
    command.add_argument(
        "--metric", choices=METRICS, default=FORWARD,
        help="tokens (default): whether each token of the right answer is the likeliest, by one forward pass, with the "
        "loss; the others judge answers that the model generates (docs/evaluation.md)",
    )  # fmt: skip
    command.add_argument("--prompt", help="a line to add to every question, such as the form of the answer")
    command.add_argument("--max_new_tokens", type=int, help="longest answer in tokens; default: 64")
    command.add_argument("--frames", type=int, help="most frames of a video; default: the model's")
    add_dtype_flag(command, None)
    add_normalizer_flag(command, None)
    command.add_argument(
        "--bleu_tokenizer", choices=("13a", "intl", "char", "zh", "none"), help="sacrebleu's; default: 13a"
    )
    add_recogniser_flags(command)
    command.add_argument("--mmar", type=Path, metavar="FILE", help="also write answers for MMAR's own scorer")
    command.add_argument("--mmau", type=Path, metavar="FILE", help="also write answers for MMAU's own scorer")
    command.add_argument(
        "--answers", type=Path, metavar="FILE",
        help='score the answers of a JSONL file, {"id": ..., "answer": "..."}, instead of asking a model',
    )  # fmt: skip


def add_normalizer_flag(command: argparse.ArgumentParser, default: str | None) -> None:
    """Adds --normalizer."""
    command.add_argument(
        "--normalizer", choices=("english", "basic"), default=default,
        help="Whisper's normalizer for WER: of English (default), or of any language",
    )  # fmt: skip


def add_recogniser_flags(command: argparse.ArgumentParser, **defaults: object) -> None:
    """Adds the flags of an external recogniser; RECOGNISER has their defaults."""
    command.add_argument(
        "--recogniser", metavar="NAME",
        help="external recogniser, pocketsphinx or http://HOST:PORT with /v1/audio/transcriptions; the prompt then has "
        "what it heard beside each sound",
    )  # fmt: skip
    command.add_argument("--recogniser_model", help="model of that server; default: whisper-1")
    command.add_argument("--candidates", type=int, help="texts that pocketsphinx gives for each sound; default: 1")
    command.set_defaults(**defaults)


def check_flags(arguments: Namespace) -> None:
    """Fills in defaults; raises ConfigError for flags that the metric does not read, or without a model."""
    if bool(arguments.model) == bool(arguments.answers):
        raise ConfigError("give --model DIR, or --answers FILE to score answers that are there")
    if arguments.answers:
        given = [name for name in _OF_A_MODEL if getattr(arguments, name) is not None]
        if given or arguments.drop != "nothing" or arguments.metric == "likelihood":
            flag = f"--{given[0]}" if given else "--metric likelihood" if arguments.drop == "nothing" else "--drop"
            raise ConfigError(f"{flag} is for asking a model: omit it, or --answers")
    for name, default in _DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        elif arguments.metric == FORWARD:
            raise ConfigError(f"--{name} belongs to metrics of generated answers: add --metric, for example choice")
        elif name in ("max_new_tokens", "frames", "candidates") and getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}: it must be 1 or more")
