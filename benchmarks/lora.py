"""LoRA against full fine-tuning of the tiny model, on kinds of questions that its training data do not hold.

python benchmarks/lora.py --model runs/tiny --folder runs/lora          # `make demo` leaves runs/tiny

Makes clips that are asked for ranks ("Which colour, ..., was seen third?"), measures the model on them as it is, trains
it in both ways, merges the adapters and prints the table. Started again it goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from omnivinci_jax.train.start import model_folder

REPOSITORY = Path(__file__).parents[1]
CLIPS = ("--train_clips=1100", "--val_clips=40", "--held_out_clips=220")
# Groups like those of the demo, and the steps that both ways get.
SIZE = (
    *(f"--config.data.{name}" for name in ("groups=1", "workers=1", "cache_media=true")),
    *(f"--config.data.capacity.{name}" for name in ("rows=4", "slots=304", "tiles=128", "windows=14", "clips=14")),
    *(f"--config.{name}" for name in ("dtype=float32", "tower_remat=dots", "decoder_remat=dots")),
    *(f"--config.{name}" for name in ("steps=1200", "eval_every=200", "checkpoint_every=200")),
)
# Rates were chosen on the validation clips.
WAYS = {
    "full": ("--config.optimizer.learning_rate=1e-3",),
    "LoRA": ("--config.optimizer.learning_rate=5e-3", "--config.lora.rank=8"),
}


def omnivinci(command: str, *arguments: str | Path) -> None:
    """The real command; its end is ours where it fails."""
    done = subprocess.run([sys.executable, "-m", "omnivinci_jax.cli", command, *map(str, arguments)], cwd=REPOSITORY)
    if done.returncode:
        sys.exit(done.returncode)


def evaluated(model: Path, data: Path, out: Path) -> dict:
    """Held-out results of a model directory."""
    if not out.exists():
        omnivinci("evaluate", "--model", model, "--data", data, "--out", out)
    return json.loads(out.read_text())


def trained_parameters(workdir: Path) -> tuple[int, int]:
    """How many parameters of a run train, and how many there are."""
    import jax

    from omnivinci_jax.mesh.mesh import make_mesh
    from omnivinci_jax.train.optimizer import make_optimizer
    from omnivinci_jax.train.state import abstract_state, make_model
    from omnivinci_jax.train.workdir import read_workdir

    config = read_workdir(workdir)
    model, optimizer = make_model(config, "cpu"), make_optimizer(config.optimizer, config.steps, config.model)
    shapes, _ = abstract_state(model, optimizer, config, make_mesh(config.mesh))
    trained, held = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (shapes.trainable, shapes.frozen))
    return trained, trained + held


def main() -> None:
    """Makes, trains, measures; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a trained tiny model, or the directory of its run")
    parser.add_argument("--folder", type=Path, required=True, help="where data and runs go")
    options = parser.parse_args()
    start, folder = model_folder(options.model.absolute()), options.folder.absolute()
    data = folder / "rank"
    omnivinci("av_world", "--out", data, "--asking", "rank", *CLIPS)
    files = [f"--config.data.{split}={data / split}.jsonl" for split in ("train", "val", "held_out")]
    held_out = data / "held_out.jsonl"

    kinds = ("rank_seen", "rank_heard")
    rows = [("before", "", "", evaluated(start, held_out, folder / "before.json"))]
    for way, settings in WAYS.items():
        workdir = folder / way
        if not (workdir / "report.md").exists():
            config = f"--config={REPOSITORY / 'configs' / 'finetune.py'}:{start}"
            omnivinci(
                "train", config, "--workdir", workdir, *files, f"--config.data.cache={folder}/cache", *SIZE, *settings
            )
        results = json.loads((workdir / "results.json").read_text())
        trained, everything = trained_parameters(workdir)
        rows.append((way, f"{trained:,}", f"{trained / everything:.1%}", results))
    merged = folder / "merged"
    if not merged.exists():
        omnivinci("export", "--run", folder / "LoRA", "--out", merged)
    rows.append(("LoRA, merged", "", "", evaluated(merged, held_out, folder / "merged.json")))

    print("\n| | trained | share | " + " | ".join(kinds) + " | overall | loss |")
    print("|---|---|---|---|---|---|---|")
    for *cells, results in rows:
        accuracies = (results["by_kind"][kind] for kind in kinds)
        cells += [f"{accuracy:.1%}" for accuracy in (*accuracies, results["overall"])]
        print(f"| {' | '.join(cells)} | {results['loss']:.4f} |")


if __name__ == "__main__":
    main()
