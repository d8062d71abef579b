"""Writes the data set: media files, conversations of three splits, and the true timelines.

    omnivinci av_world --out data/av_world

`train.jsonl` has conversations of several turns, `val.jsonl` and `held_out.jsonl` one question per line with its kind
and options. Media paths are relative to these files. No clip is in two splits.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from omnivinci_jax.av_world.encode import write_media
from omnivinci_jax.av_world.extras import conversation_row, write_extra
from omnivinci_jax.av_world.questions import Question, one_of_each, rank_questions, training_conversations
from omnivinci_jax.av_world.render import FRAME_RATE, SAMPLE_RATE, render_frames, render_waveform
from omnivinci_jax.av_world.timeline import Clip, draw_clips
from omnivinci_jax.errors import ConfigError, DataError
from omnivinci_jax.paths import atomic_file, remove_unfinished

Asking = Literal["all", "rank"]

VERSION = 2  # raise it when the same arguments give other files
EXTRA_ROWS_PER_CLIP = 0.15  # training rows of other kinds, about 5 % of all


def generate(
    out: Path,
    seed: int,
    train_clips: int = 1100,
    val_clips: int = 60,
    held_out_clips: int = 220,
    workers: int = 2,
    asking: Asking = "all",
) -> None:
    """Writes the data set into `out`; a second call completes an interrupted one, or does nothing.

    The files depend only on the arguments other than `workers`. `asking` is `all` for the five kinds of questions, or
    `rank` for the two rank kinds, about full clips.

    Raises:
        ConfigError: a number is too small.
        DataError: `out` holds something else, such as a data set with other arguments, or cannot be written.
    """
    counts = {"train": train_clips, "val": val_clips, "held_out": held_out_clips}
    if min(seed, *counts.values(), workers - 1) < 0:
        raise ConfigError(
            f"seed {seed}, clips {counts}, workers {workers}: none may be negative, and workers must be at least 1"
        )
    arguments = {"version": VERSION, "seed": seed, "clips": counts} | ({} if asking == "all" else {"asking": asking})
    folders = ("clips", "images", "sounds")
    write_once(out, "av_world", arguments, folders, workers, partial(_write_all, out, seed, counts, asking))


def _write_all(out: Path, seed: int, counts: dict[str, int], asking: Asking, pool: ProcessPoolExecutor) -> None:
    clips = {split: draw_clips(seed, split, count) for split, count in counts.items()}
    if asking == "rank":
        clips["train"] = [clip for clip in clips["train"] if clip.is_full]
    everything = [clip for split in clips.values() for clip in split]
    extras = round(EXTRA_ROWS_PER_CLIP * counts["train"]) if asking == "all" else 0
    extra_rows = []
    with tqdm(total=len(everything) + extras, desc="av_world", unit="file") as progress:
        for _ in pool.map(partial(write_clip, out), everything, chunksize=8):
            progress.update()
        for row in pool.map(partial(write_extra, out, seed), range(extras), chunksize=8):
            extra_rows.append(row)
            progress.update()
    write_rows(out / "timelines.jsonl", ({"file": f"clips/{clip.name}"} | asdict(clip) for clip in everything))
    rows = (row for clip in clips["train"] for row in training_rows(clip, asking))
    write_rows(out / "train.jsonl", [*rows, *extra_rows])
    for split in ("val", "held_out"):
        write_rows(out / f"{split}.jsonl", (row for clip in clips[split] for row in question_rows(clip, asking)))


def write_clip(out: Path, clip: Clip) -> None:
    """Renders and encodes a clip, unless its file exists."""
    path = out / "clips" / clip.name
    if not path.exists():
        write_media(path, render_frames(clip), FRAME_RATE, render_waveform(clip)[None], SAMPLE_RATE)


def training_rows(clip: Clip, asking: Asking = "all") -> list[dict[str, Any]]:
    """Returns one row per conversation about the clip."""
    media = "video", f"clips/{clip.name}"
    if asking == "all":
        conversations = training_conversations(clip)
    else:
        pairs = rank_questions(clip, clip.rng("questions"))
        conversations = [[(question.text, question.answer) for question in pair] for pair in pairs]
    return [
        conversation_row(f"{clip.split}-{clip.number:06d}-{variant}", media, turns)
        for variant, turns in enumerate(conversations)
    ]


def question_rows(clip: Clip, asking: Asking = "all") -> list[dict[str, Any]]:
    """Returns one row per kind of question."""
    media = "video", f"clips/{clip.name}"
    questions: Sequence[Question] = (
        one_of_each(clip) if asking == "all" else rank_questions(clip, clip.rng("questions"))[0]
    )
    return [
        conversation_row(f"{clip.split}-{clip.number:06d}-{question.kind}", media, [(question.text, question.answer)])
        | {"kind": question.kind, "options": question.options}
        for question in questions
    ]


def write_once(
    out: Path,
    name: str,
    arguments: dict[str, Any],
    folders: Sequence[str],
    workers: int,
    write: Callable[[ProcessPoolExecutor], None],
) -> None:
    """Calls `write` to fill `out` and its `folders`, unless the data set is complete; NAME.json records its arguments.

    Raises:
        DataError: `out` holds something else, or cannot be written.
    """
    note = out / f"{name}.json"
    try:
        if _is_finished(note, arguments):
            return
        for folder in ("", *folders):
            (out / folder).mkdir(parents=True, exist_ok=True)
            remove_unfinished(out / folder)
        write_rows(note, [arguments | {"finished": False}])
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            write(pool)
        write_rows(note, [arguments | {"finished": True}])
    except OSError as error:
        raise DataError(f"{out}: the data set cannot be written: {error}") from error


def _is_finished(note: Path, arguments: dict[str, Any]) -> bool:
    out = note.parent
    if not note.exists():
        if out.exists() and any(out.iterdir()):
            raise DataError(f"{out}: not empty and not an av_world data set; give a new or an empty folder")
        return False
    found = json.loads(note.read_text())
    finished = found.pop("finished")
    if found != arguments:
        raise DataError(f"{note}: made with {found}, not with {arguments}; give another folder or delete this one")
    return finished


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines to a file that appears only once it is complete."""
    with atomic_file(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
