"""A data set for the paper's stages at the tiny size: one file per modality, and held-out questions of all.

    omnivinci av_world curriculum --out runs/curriculum

NAME is `text` (clip logs, sums), `images`, `sounds` (single sounds, sound tracks of clips, and speech if espeak-ng is
installed), `videos` (without sound) or `omni` (videos with sound, and some of everything else, as in Section 3.2).
NAME.jsonl has training rows, NAME_val.jsonl questions, including text ones; `held_out.jsonl` has questions of every
modality, labelled by `kind`. No media file is in two splits.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from omnivinci_jax.av_world.extras import (
    can_speak,
    image_row,
    log_caption_row,
    log_row,
    silent_row,
    sound_row,
    soundtrack_row,
    speech_row,
    text_row,
)
from omnivinci_jax.av_world.generate import question_rows, training_rows, write_clip, write_once, write_rows
from omnivinci_jax.av_world.timeline import draw_clips

Row = dict[str, Any]


class Modality(NamedTuple):
    """A modality: how to make its rows, how many are for training, and how many of these joint training also uses.

    asked: whether its questions are used for evaluation.
    """

    make: Callable[[Path, int, int], Row]
    train: int
    joint: int
    asked: bool = True


VERSION = 2  # raise it when the same arguments give other files
VAL, HELD_OUT, JOINT_CLIPS, QUESTIONS = 40, 220, 1100, 5
MODALITIES = {
    "image": Modality(image_row, 1600, 200),
    "sum": Modality(text_row, 400, 50, asked=False),
    "text": Modality(log_row, 3000, 300),
    "text caption": Modality(log_caption_row, 3000, 300, asked=False),
    "sound": Modality(sound_row, 1200, 150),
    "sound track": Modality(soundtrack_row, 600, 100),
    "speech": Modality(speech_row, 1200, 150),
    "video": Modality(silent_row, 600, 100),
}
FILES = {
    "text": ("sum", "text", "text caption"),
    "images": ("image",),
    "sounds": ("sound", "sound track", "speech"),
    "videos": ("video",),
}


def write_curriculum(out: Path, seed: int = 0, scale: float = 1.0, workers: int = 2) -> None:
    """Writes the data set into `out`; a second call completes an interrupted one, or does nothing.

    `scale` multiplies all numbers of rows; the files depend on `scale`, `seed` and espeak-ng.

    Raises:
        DataError: `out` holds something else, or cannot be written.
    """
    arguments = {"version": VERSION, "seed": seed, "scale": scale, "speech": can_speak()}
    folders = ("clips", "images", "sounds", "speech")
    write_once(out, "curriculum", arguments, folders, workers, partial(_write_all, out, seed, scale))


def _write_all(out: Path, seed: int, scale: float, pool: ProcessPoolExecutor) -> None:
    def scaled(count: int) -> int:
        return max(1, round(scale * count))

    val, held_out = scaled(VAL), scaled(HELD_OUT)
    train, joint, val_questions, held_out_questions = {}, [], {}, []
    for kind, modality in MODALITIES.items():
        if kind == "speech" and not can_speak():
            continue
        count = scaled(modality.train)
        numbers = range(count + val + held_out)  # in this order: train, val, held_out
        made = pool.map(partial(modality.make, out, seed), numbers, chunksize=8)
        rows = list(tqdm(made, desc=kind, total=len(numbers), unit="file"))
        train[kind] = rows[:count]
        joint += rows[: scaled(modality.joint)]
        if modality.asked:
            questions = [_question(row, kind, number) for number, row in enumerate(rows[count:])]
            val_questions[kind] = questions[:val]
            held_out_questions += questions[val:]
    for name, kinds in FILES.items():
        write_rows(out / f"{name}.jsonl", (row for kind in kinds for row in train.get(kind, ())))
        val_kinds = dict.fromkeys(("text", *kinds))
        write_rows(out / f"{name}_val.jsonl", (row for kind in val_kinds for row in val_questions.get(kind, ())))

    counts = {"train": scaled(JOINT_CLIPS), "val": -(-val // QUESTIONS), "held_out": -(-held_out // QUESTIONS)}
    clips = {split: draw_clips(seed, split, count) for split, count in counts.items()}
    everything = [clip for split in clips.values() for clip in split]
    for _ in tqdm(pool.map(partial(write_clip, out), everything, chunksize=8), "clip", len(everything), unit="file"):
        pass
    asked = {
        split: [row | {"kind": "video with sound"} for clip in clips[split] for row in question_rows(clip)]
        for split in ("val", "held_out")
    }
    write_rows(out / "omni.jsonl", [*(row for clip in clips["train"] for row in training_rows(clip)), *joint])
    write_rows(out / "omni_val.jsonl", [*asked["val"], *(row for rows in val_questions.values() for row in rows)])
    write_rows(out / "held_out.jsonl", [*held_out_questions, *asked["held_out"]])


def _question(row: Row, kind: str, number: int) -> Row:
    """Makes one question of a row a conversation; cycles over all turns except the last, which may be a caption."""
    first, *_ = row["messages"][0]["content"]
    turns = len(row["messages"]) // 2
    start = 2 * (number % max(1, turns - 1))
    user, answer = row["messages"][start : start + 2]
    content = [first, user["content"][-1]]
    return row | {"messages": [{"role": "user", "content": content}, answer], "kind": kind}
