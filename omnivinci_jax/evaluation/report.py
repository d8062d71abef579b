"""The report of a run: results.json, loss curve, accuracy by kind, report.md."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

from omnivinci_jax import strict_json
from omnivinci_jax.evaluation.accuracy import Evaluation, accuracy_table, retrieval_table
from omnivinci_jax.paths import AnyPath
from omnivinci_jax.train.metrics import read_metrics
from omnivinci_jax.train.report import report_head, skipped_lines


def write_report(workdir: Path, evaluation: Evaluation | None, seconds: float, parameters: int) -> None:
    """Writes report.md and loss.png into `workdir`, and with an evaluation results.json and accuracy.png."""
    metrics = read_metrics(workdir / "metrics.jsonl")
    plot_losses(metrics, workdir / "loss.png")
    lines = report_head(workdir, metrics, "loss", seconds, parameters)
    if evaluation:
        write_results(workdir / "results.json", evaluation, seconds)
        plot_accuracy(evaluation, workdir / "accuracy.png")
        lines += ["", "Held-out accuracy:", "", accuracy_table(evaluation), "", "![accuracy](accuracy.png)"]
        if evaluation.retrieval:
            lines += ["", "OmniAlignNet finds the other stream of a video:", "", retrieval_table(evaluation)]
        lines += skipped_lines(evaluation.skipped, "samples")
    (workdir / "report.md").write_text("\n".join(lines) + "\n", errors="backslashreplace")


def write_results(path: AnyPath, evaluation: Evaluation, seconds: float) -> None:
    """Writes `overall`, `by_kind`, `counts`, `loss`, `retrieval`, `skipped` and `seconds` as JSON."""
    results = {
        "overall": evaluation.overall,
        "by_kind": evaluation.by_kind,
        "counts": evaluation.counts,
        "loss": evaluation.loss,
        "retrieval": evaluation.retrieval,
        "skipped": len(evaluation.skipped),
        "seconds": round(seconds, 1),
    }
    path.write_text(strict_json.dumps(results, indent=2) + "\n")


def plot_losses(metrics: list[dict], path: Path) -> None:
    """Plots training loss by step, with validation loss and accuracy if there are any."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    train = [line for line in metrics if line["split"] == "train"]
    axes.plot([line["step"] for line in train], [line["loss"] for line in train], linewidth=1, label="training loss")
    val = [line for line in metrics if line["split"] == "val"]
    if val:
        axes.plot([line["step"] for line in val], [line["loss"] for line in val], "o-", label="validation loss")
        right = axes.twinx()
        right.plot([line["step"] for line in val], [line["accuracy"] for line in val], "s--", color="tab:green")
        right.set_ylabel("validation accuracy", color="tab:green")
        right.set_ylim(0, 1)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_accuracy(evaluation: Evaluation, path: Path) -> None:
    """Plots accuracy by kind."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    kinds = [kind.replace("$", r"\$") for kind in (*evaluation.by_kind, "overall")]  # no mathematics
    values = [*evaluation.by_kind.values(), evaluation.overall]
    bars = axes.bar(kinds, values, color=["tab:blue"] * len(evaluation.by_kind) + ["tab:gray"])
    axes.bar_label(bars, labels=[f"{value:.1%}" for value in values])
    axes.set(ylabel="accuracy", ylim=(0, 1.1))
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
