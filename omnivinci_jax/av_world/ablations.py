"""The data of the ablations (configs/ablations/): clips with two kinds of training rows.

    omnivinci av_world ablations --out runs/ablation_data/paired --paired
    omnivinci av_world ablations --out runs/ablation_data/independent

`questions.jsonl` has multiple-choice conversations, `captions.jsonl` captions of sights and sounds together, like those
of a data engine (Section 3.2); `val.jsonl` and `held_out.jsonl` are as in av_world. With --paired each colour has its
own sound, so OmniAlignNet has something to align, and a clip's frames predict its sounds. Otherwise they do not.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from omnivinci_jax.av_world.generate import question_rows, training_rows, write_clip, write_once, write_rows
from omnivinci_jax.av_world.timeline import draw_clips

CLIPS = {"train": 1100, "val": 60, "held_out": 220}
CAPTIONS = 4  # the first conversations of a clip are captions, the others questions


def write_ablation_data(out: Path, paired: bool, seed: int = 0, scale: float = 1.0, workers: int = 2) -> None:
    """Writes the data set into `out`; a second call completes an interrupted one, or does nothing.

    `scale` multiplies the numbers of clips; the files depend only on `scale`, `paired` and `seed`.

    Raises:
        DataError: `out` holds something else, or cannot be written.
    """
    arguments = {"paired": paired, "seed": seed, "scale": scale}
    write_once(out, "ablations", arguments, ("clips",), workers, partial(_write_all, out, paired, seed, scale))


def _write_all(out: Path, paired: bool, seed: int, scale: float, pool: ProcessPoolExecutor) -> None:
    clips = {split: draw_clips(seed, split, max(1, round(scale * count)), paired) for split, count in CLIPS.items()}
    everything = [clip for split in clips.values() for clip in split]
    written = pool.map(partial(write_clip, out), everything, chunksize=8)
    for _ in tqdm(written, "ablations", len(everything), unit="file"):
        pass
    rows = [training_rows(clip) for clip in clips["train"]]
    write_rows(out / "captions.jsonl", (row for conversations in rows for row in conversations[:CAPTIONS]))
    write_rows(out / "questions.jsonl", (row for conversations in rows for row in conversations[CAPTIONS:]))
    for split in ("val", "held_out"):
        write_rows(out / f"{split}.jsonl", (row for clip in clips[split] for row in question_rows(clip)))
