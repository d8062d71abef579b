"""Questions to reason about, for supervised training and then GRPO (docs/grpo.md).

    omnivinci av_world reasoning --out runs/reasoning

Each question asks what is seen or heard in a clip. `supervised.jsonl` answers half of its questions as
<think>...</think><answer>...</answer>, where the reasoning lists all that is seen or heard, and the others directly: so
a model learns the format, and uses it about half of the time. `train.jsonl`, `val.jsonl` and `held_out.jsonl` have one
question a line, with its "answer" and "options" beside the messages.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from omnivinci_jax.av_world.extras import conversation_row
from omnivinci_jax.av_world.generate import write_clip, write_once, write_rows
from omnivinci_jax.av_world.questions import Question, all_questions
from omnivinci_jax.av_world.timeline import Clip, draw_clips

CLIPS = {"train": 1100, "val": 30, "held_out": 220}
ASKED = ("seen", "heard")


def write_reasoning_data(out: Path, seed: int = 0, scale: float = 1.0, workers: int = 2) -> None:
    """Writes the data set into `out`; a second call completes an interrupted one, or does nothing.

    `scale` multiplies the numbers of clips; the files depend only on `scale` and `seed`.

    Raises:
        DataError: `out` holds something else, or cannot be written.
    """
    arguments = {"seed": seed, "scale": scale}
    write_once(out, "reasoning", arguments, ("clips",), workers, partial(_write_all, out, seed, scale))


def _write_all(out: Path, seed: int, scale: float, pool: ProcessPoolExecutor) -> None:
    clips = {split: draw_clips(seed, split, max(1, round(scale * count))) for split, count in CLIPS.items()}
    everything = [clip for split in clips.values() for clip in split]
    for _ in tqdm(pool.map(partial(write_clip, out), everything, chunksize=8), "clips", len(everything), unit="file"):
        pass
    write_rows(out / "supervised.jsonl", (row for clip in clips["train"] for row in supervised_rows(clip)))
    full = [clip for clip in clips["train"] if clip.is_full]
    write_rows(out / "train.jsonl", (row for clip in full for row in question_rows(clip)))
    for split in ("val", "held_out"):
        write_rows(out / f"{split}.jsonl", (row for clip in clips[split] for row in question_rows(clip, 1)))


def supervised_rows(clip: Clip) -> list[dict[str, Any]]:
    """Returns one row for each pair of a question about the sights and one about the sounds, in random order."""
    rng, rows = clip.rng("questions"), []
    questions = all_questions(clip, rng)
    for number, pair in enumerate(zip(*(questions[kind] for kind in ASKED), strict=True)):
        turns = [
            (question.text, reasoned_answer(clip, question) if rng.random() < 0.5 else question.answer)
            for question in (pair[index] for index in rng.permutation(len(pair)))
        ]
        rows.append(
            conversation_row(f"{clip.split}-{clip.number:06d}-{number}", ("video", f"clips/{clip.name}"), turns)
        )
    return rows


def question_rows(clip: Clip, each: int | None = None) -> list[dict[str, Any]]:
    """Returns one row for each question, at most `each` of a kind, without the answer in the messages."""
    questions = all_questions(clip, np.random.default_rng([clip.seed, clip.number]))
    rows = []
    for kind in ASKED:
        for number, question in enumerate(questions[kind][:each]):
            name = f"{clip.split}-{clip.number:06d}-{kind}-{number}"
            row = conversation_row(name, ("video", f"clips/{clip.name}"), [(question.text, question.answer)])
            row["messages"].pop()
            rows.append(row | {"kind": kind, "answer": question.answer, "options": question.options})
    return rows


def reasoned_answer(clip: Clip, question: Question) -> str:
    """Returns the answer after reasoning that lists the events of the stream that the question is about."""
    events = clip.sights if question.kind == "seen" else clip.sounds
    return f"<think>{' '.join(event.name for event in events)}</think><answer>{question.answer}</answer>"
