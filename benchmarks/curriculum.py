"""Trains the paper's stages in order at the tiny size and evaluates each modality after every stage.

python benchmarks/curriculum.py        # in the repository: data in runs/curriculum, stages in runs/stages

Resumes if started again. After each stage, its best model (on the stage's own validation questions) answers held-out
questions of all modalities, including speech if espeak-ng is installed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from omnivinci_jax.train.stages import STAGES

REPOSITORY = Path(__file__).parents[1]
DATA, RUNS = (REPOSITORY / "runs" / name for name in ("curriculum", "stages"))


def python(*arguments: str | Path) -> None:
    """Runs a Python module; exits if it fails."""
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=REPOSITORY)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Generates data, trains, evaluates; prints the table."""
    python("omnivinci_jax.cli", "av_world", "curriculum", "--out", DATA)
    train = {"TRAIN": f"{sys.executable} -m omnivinci_jax.cli train"}
    script = ["launch/curriculum.sh", "configs/stages/tiny.py", RUNS.relative_to(REPOSITORY)]
    done = subprocess.run(script, cwd=REPOSITORY, env=os.environ | train)
    if done.returncode:
        sys.exit(done.returncode)

    measured = {}
    for stage in STAGES:
        out = RUNS / f"{stage}.json"
        if not out.exists():
            python(
                "omnivinci_jax.cli", "evaluate", "--model", RUNS / stage / "model", "--data", DATA / "held_out.jsonl",
                "--out", out,
            )  # fmt: skip
        measured[stage] = json.loads(out.read_text())
    kinds = measured["omni"]["by_kind"]
    print("\n| after | steps | " + " | ".join(kinds) + " | seconds |")
    print("|---|---|" + "---|" * (len(kinds) + 1))
    for stage, results in measured.items():
        *_, last = map(json.loads, (RUNS / stage / "metrics.jsonl").read_text().splitlines())
        seconds = (RUNS / stage / "report.md").read_text().split(" steps, ")[1].split(" s.")[0]
        cells = " | ".join(f"{results['by_kind'][kind]:.1%}" for kind in kinds)
        print(f"| {stage} | {last['step']} | {cells} | {seconds} |")
    print("| questions | | " + " | ".join(str(measured["omni"]["counts"][kind]) for kind in kinds) + " | |")


if __name__ == "__main__":
    main()
