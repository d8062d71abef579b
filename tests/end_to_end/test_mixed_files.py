"""A run on 200 files of many kinds, 20 of them broken: it ends well and names the broken ones."""

import os
import random
import re
from pathlib import Path

from tests.end_to_end.commands import WORKER, losses, run, train_command
from tests.media.mixed import FILES, question_about, write_mixed_files


def lines_named(text: str) -> set[int]:
    return {int(line) for line in re.findall(r"data\.jsonl:(\d+): ", text)}


def test_broken_files_are_named_and_the_others_train(av_world, environment, tmp_path):
    write_mixed_files(tmp_path)
    good, broken = ([file for file in FILES if (file[3] is None) == is_good] for is_good in (True, False))
    names = [*(good * 20)[:180], *(broken * 2)[:20]]
    random.Random(0).shuffle(names)
    assert len(names) == 200 and set(names) == {*FILES}
    with open(tmp_path / "data.jsonl", "w") as file:
        for number, (kind, name, track, _) in enumerate(names):
            copy = f"{number}{Path(name).suffix}"
            os.link(tmp_path / name, tmp_path / copy)
            file.write(question_about(kind, copy, track))
    overrides = (
        f"--config.data.train={tmp_path / 'data.jsonl'}", f"--config.data.cache={tmp_path / 'cache'}",
        "--config.data.max_skipped=0.2", "--config.data.val=", "--config.data.held_out=",
    )  # fmt: skip
    done = run(train_command(av_world, tmp_path / "run", WORKER, *overrides), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = (tmp_path / "run" / "skipped.txt").read_text()
    expected = {line for line, (_, _, _, problem) in enumerate(names, start=1) if problem is not None}
    assert lines_named(done.stderr) | lines_named(loaded) == expected

    # The index keeps the plan; without the files that only decoding finds broken, the same losses come out.
    for line in lines_named(loaded):
        _, name, _, _ = names[line - 1]
        (tmp_path / f"{line - 1}{Path(name).suffix}").unlink()
    again = run(train_command(av_world, tmp_path / "again", *overrides), environment)
    assert again.returncode == 0, again.stderr[-3000:]
    assert lines_named((tmp_path / "again" / "skipped.txt").read_text()) == lines_named(loaded) != set()
    assert losses(tmp_path / "again") == losses(tmp_path / "run")
