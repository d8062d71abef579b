"""A data set for the paper's stages at the tiny size: a file for each modality, and held-out questions of all.

    omnivinci av_world curriculum --out runs/curriculum

`text` (clips told in words, sums), `images`, `sounds` (of one event, tracks of clips, and speech where espeak-ng is
installed), `videos` (without sound) and `omni` (videos with sound, and some of everything else, as in Section 3.2) have
training rows in NAME.jsonl and questions, about text too, in NAME_val.jsonl; `held_out.jsonl` has questions of each
modality, their `kind`. No file is in two of these.
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
    """How rows of a modality are made, and how many of them train; of those, `joint` also in joint training.

    asked: whether questions of it measure a model.
    """

    make: Callable[[Path, int, int], Row]
    train: int
    joint: int
    asked: bool = True


VERSION = 2  # of what is made of the arguments: to be raised when that changes
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
    """Writes the data set into `out`; a second call finishes what an interrupted one began, or does nothing.

    `scale` multiplies all numbers of rows; the files depend on it, on `seed` and on espeak-ng.

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
        numbers = range(count + val + held_out)  # the first train, the next choose, the last measure
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
        choosing = dict.fromkeys(("text", *kinds))
        write_rows(out / f"{name}_val.jsonl", (row for kind in choosing for row in val_questions.get(kind, ())))

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
    """One question of a row, by itself: all but its last turn, which may be a caption, are asked in turn."""
    first, *_ = row["messages"][0]["content"]
    turns = len(row["messages"]) // 2
    place = 2 * (number % max(1, turns - 1))
    user, answer = row["messages"][place : place + 2]
    content = [first, user["content"][-1]]
    return row | {"messages": [{"role": "user", "content": content}, answer], "kind": kind}
