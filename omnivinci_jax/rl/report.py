"""The report of a GRPO run: curves as in Figure 6, the held-out rewards, and answers with their rewards."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

from omnivinci_jax import strict_json
from omnivinci_jax.rl.evaluate import RewardScore
from omnivinci_jax.train.metrics import read_metrics
from omnivinci_jax.train.report import report_head, skipped_lines

_SHOWN_PROMPTS = 2  # at each end of the run


def write_report(folder: Path, score: RewardScore | None, seconds: float, parameters: int) -> None:
    """Writes report.md and rewards.png into `folder`, and with a score results.json."""
    metrics = read_metrics(folder / "metrics.jsonl")
    plot_rewards(metrics, folder / "rewards.png")
    lines = report_head(folder, metrics, "rewards", seconds, parameters)
    if score:
        (folder / "results.json").write_text(
            strict_json.dumps({**score.metrics, "count": score.count}, indent=2) + "\n"
        )
        before = next((line for line in metrics if line["split"] == "held_out"), {})
        lines += ["", f"Greedy answers to {score.count} held-out prompts:", ""]
        lines += ["| mean | before | after |", "|---|---|---|"]
        for name, value in score.metrics.items():
            lines.append(f"| {name} | {before.get(name, math.nan):.3f} | {value:.3f} |")
        lines += skipped_lines(score.skipped, "prompts")
    answered = read_metrics(folder / "answers.jsonl")
    first, last = answered[:_SHOWN_PROMPTS], answered[_SHOWN_PROMPTS:][-_SHOWN_PROMPTS:]
    for line in first + last:
        lines += ["", f"Step {line['step']}: {_inline(line['prompt'])} (right: {_inline(line['answer'])})", ""]
        for answer in line["answers"]:
            rewards = ", ".join(f"{name} {value:g}" for name, value in answer.items() if name != "text")
            lines.append(f"- {_inline(answer['text'])}: {rewards}")
    (folder / "report.md").write_text("\n".join(lines) + "\n", errors="backslashreplace")


def plot_rewards(metrics: list[dict], path: Path) -> None:
    """Plots rewards by step, with those on the validation file, and KL, entropy, length and zero-variance groups."""
    figure, ((rewards, divergence), (length, shares)) = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
    train, val = ([line for line in metrics if line["split"] == split] for split in ("train", "val"))
    names = [name for name in (train[0] if train else ()) if name.endswith("_reward")]
    for axes, shown in (
        (rewards, names),
        (divergence, ("kl", "entropy")),
        (length, ("length",)),
        (shares, ("zero_variance", "truncated")),
    ):
        for number, name in enumerate(shown):
            for lines, style, label in ((train, "-", name.replace("_", " ")), (val, "o--", None)):
                points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label)
        axes.set(xlabel="step")
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _inline(text: str) -> str:
    """Returns a text as one line of Markdown code."""
    text = " ".join(text.split()).replace("`", "'")
    return f"`{text if len(text) <= 400 else text[:397] + '...'}`"
