"""The flags of `omnivinci transcribe`. Does not import jax."""

import argparse
from pathlib import Path

from omnivinci_jax.evaluation.flags import RECOGNISER, add_normalizer_flag, add_recogniser_flags
from omnivinci_jax.flags import add_dtype_flag


def add_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags but --model, --mesh and --max_skipped."""
    command.add_argument(
        "data", type=Path,
        help="a sound or video; a folder of them; a corpus: LibriSpeech's, a Hugging Face audio folder, JSONL",
    )  # fmt: skip
    target = command.add_mutually_exclusive_group()
    target.add_argument(
        "--out", type=Path, help="folder to write transcripts to; files that are there already are left out"
    )
    target.add_argument("--wer", type=Path, metavar="FILE", help="JSON file for the word error rate of a corpus")
    command.add_argument("--format", choices=("text", "vtt", "srt", "json"), default="text", help="default: text")
    add_normalizer_flag(command, "english")
    command.add_argument("--prompt", help="default: Transcribe the Speech.")
    command.add_argument(
        "--window_seconds", type=float, default=30.0, help="longer sound is cut where it is quiet; default: 30"
    )
    command.add_argument("--max_new_tokens", type=int, default=256, help="longest text of a window in tokens")
    command.add_argument("--rows", type=int, default=8, help="windows that are transcribed together")
    add_dtype_flag(command)
    add_recogniser_flags(command, **RECOGNISER)
    command.add_argument(
        "--rag", action="store_true",
        help="the model decides whether the recogniser's texts correct its own (a model trained on rag-data)",
    )  # fmt: skip


def add_rag_data_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of `omnivinci rag-data` but --model and --mesh."""
    command.add_argument("data", type=Path, help="a corpus, as for transcribe, with right texts")
    command.add_argument("--out", type=Path, required=True, help="JSONL file of conversations to write")
    command.add_argument(
        "--threshold", type=float, default=0.1,
        help="word error rate below which the model's own text is right to accept; default: 0.1",
    )  # fmt: skip
    add_normalizer_flag(command, "english")
    command.add_argument("--max_new_tokens", type=int, default=256, help="longest text in tokens")
    command.add_argument("--rows", type=int, default=8, help="sounds that are transcribed together")
    add_dtype_flag(command)
    command.add_argument("--recogniser", required=True, metavar="NAME", help="pocketsphinx, or the address of a server")
    command.add_argument("--recogniser_model", default="whisper-1", help="model of that server; default: whisper-1")
