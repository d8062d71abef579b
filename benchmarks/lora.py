"""Compares LoRA with full fine-tuning of the tiny model, on kinds of questions that are not in its training data.

python benchmarks/lora.py --model runs/tiny --folder runs/lora          # runs/tiny: `make demo`

Generates clips with questions about ranks ("Which colour, ..., was seen third?"), evaluates the model on them, trains
it with both methods, merges the adapters and prints the table. Resumes if started again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from omnivinci_jax.train.start import model_folder

REPOSITORY = Path(__file__).parents[1]
CLIPS = ("--train_clips=1100", "--val_clips=40", "--held_out_clips=220")
# Capacity as in the demo, and the same number of steps for both methods.
SIZE = (
    *(f"--config.data.{name}" for name in ("groups=1", "workers=1", "cache_media=true")),
    *(f"--config.data.capacity.{name}" for name in ("rows=4", "slots=304", "tiles=128", "windows=14", "clips=14")),
    *(f"--config.{name}" for name in ("dtype=float32", "tower_remat=dots", "decoder_remat=dots")),
    *(f"--config.{name}" for name in ("steps=1200", "eval_every=200", "checkpoint_every=200")),
)
# Learning rates were chosen on the validation clips.
METHODS = {
    "full": ("--config.optimizer.learning_rate=1e-3",),
    "LoRA": ("--config.optimizer.learning_rate=5e-3", "--config.lora.rank=8"),
}


def omnivinci(command: str, *arguments: str | Path) -> None:
    """Runs an `omnivinci` command; exits if it fails."""
    done = subprocess.run([sys.executable, "-m", "omnivinci_jax.cli", command, *map(str, arguments)], cwd=REPOSITORY)
    if done.returncode:
        sys.exit(done.returncode)


def evaluate(model: Path, data: Path, out: Path) -> dict:
    """Evaluates a model directory, unless `out` exists; returns the results."""
    if not out.exists():
        omnivinci("evaluate", "--model", model, "--data", data, "--out", out)
    return json.loads(out.read_text())


def trained_parameters(workdir: Path) -> tuple[int, int]:
    """Returns the number of trainable parameters of a run, and of all its parameters."""
    import jax

    from omnivinci_jax.mesh.mesh import make_mesh
    from omnivinci_jax.train.optimizer import make_optimizer
    from omnivinci_jax.train.state import abstract_state, make_model
    from omnivinci_jax.train.workdir import read_workdir

    config = read_workdir(workdir)
    model, optimizer = make_model(config, "cpu"), make_optimizer(config.optimizer, config.steps, config.model)
    shapes, _ = abstract_state(model, optimizer, config, make_mesh(config.mesh))
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (shapes.trainable, shapes.frozen))
    return trained, trained + frozen


def main() -> None:
    """Generates data, trains, evaluates; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a trained tiny model, or its work directory")
    parser.add_argument("--folder", type=Path, required=True, help="folder for data and runs")
    options = parser.parse_args()
    start, folder = model_folder(options.model.absolute()), options.folder.absolute()
    data = folder / "rank"
    omnivinci("av_world", "--out", data, "--asking", "rank", *CLIPS)
    files = [f"--config.data.{split}={data / split}.jsonl" for split in ("train", "val", "held_out")]
    held_out = data / "held_out.jsonl"

    kinds = ("rank_seen", "rank_heard")
    rows = [("before", "", "", evaluate(start, held_out, folder / "before.json"))]
    for method, settings in METHODS.items():
        workdir = folder / method
        if not (workdir / "report.md").exists():
            config = f"--config={REPOSITORY / 'configs' / 'finetune.py'}:{start}"
            omnivinci(
                "train", config, "--workdir", workdir, *files, f"--config.data.cache={folder}/cache", *SIZE, *settings
            )
        results = json.loads((workdir / "results.json").read_text())
        trained, total = trained_parameters(workdir)
        rows.append((method, f"{trained:,}", f"{trained / total:.1%}", results))
    merged = folder / "merged"
    if not merged.exists():
        omnivinci("export", "--run", folder / "LoRA", "--out", merged)
    rows.append(("LoRA, merged", "", "", evaluate(merged, held_out, folder / "merged.json")))

    print("\n| | trained | share | " + " | ".join(kinds) + " | overall | loss |")
    print("|---|---|---|---|---|---|---|")
    for *cells, results in rows:
        accuracies = (results["by_kind"][kind] for kind in kinds)
        cells += [f"{accuracy:.1%}" for accuracy in (*accuracies, results["overall"])]
        print(f"| {' | '.join(cells)} | {results['loss']:.4f} |")


if __name__ == "__main__":
    main()
