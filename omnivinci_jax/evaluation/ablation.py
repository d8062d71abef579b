"""`omnivinci ablate`: trains the arms of an ablation from several seeds, and writes a table and a plot."""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import matplotlib

matplotlib.use("agg")
import numpy as np
from etils import epath
from matplotlib import pyplot as plt

from omnivinci_jax.data.sources import open_records
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.evaluation.accuracy import kind_of
from omnivinci_jax.generate.assistant import load
from omnivinci_jax.paths import absolute, atomic_file
from omnivinci_jax.settings import TrainConfig, from_mapping, to_mapping
from omnivinci_jax.train.metrics import read_metrics
from omnivinci_jax.train.workdir import without_machine_keys

log = logging.getLogger("omnivinci")

_TIMED_QUESTIONS = 20  # for the time to first token


@dataclass(frozen=True)
class Arm:
    """A row of the table. changes: overrides of the baseline, as nested mappings."""

    label: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class AblationConfig:
    """An ablation.

    title: heading of the table, and name of its files. train: the baseline configuration, which every arm changes.
    seeds: runs per arm, with consecutive seeds from the baseline's.
    kinds: kinds of held-out questions with their own columns, beside the overall accuracy.
    costs: whether to add columns for sound tokens per minute and time to first token.
    """

    title: str
    train: TrainConfig
    arms: tuple[Arm, ...]
    seeds: int = 3
    kinds: tuple[str, ...] = ()
    costs: bool = False

    def __post_init__(self):
        if self.seeds < 1 or not self.arms:
            raise ConfigError(f"config.seeds is {self.seeds}, with {len(self.arms)} arms: both must be 1 or more")
        labels = [arm.label for arm in self.arms]
        if len(set(labels)) < len(labels):
            raise ConfigError(f"config.arms: labels must be unique, not {labels}")
        for arm in self.arms:
            run = self.run(arm, 0)  # reports a wrong key or value before the first run
            if not run.data.held_out or run.lora.rank:
                raise ConfigError(f"config.arms.{arm.label}: an arm needs config.data.held_out and no adapters")

    def run(self, arm: Arm, seed_index: int) -> TrainConfig:
        """Returns the configuration of one run of an arm; raises ConfigError for an invalid change."""
        values = _merged(to_mapping(self.train), arm.changes)
        return from_mapping(TrainConfig, values | {"seed": self.train.seed + seed_index}, f"config.arms.{arm.label}")


class Curve(NamedTuple):
    """Validation accuracy of one run by step."""

    steps: list[int]
    accuracy: list[float]


def ablate(config: AblationConfig, folder: epath.Path, train: Callable[[TrainConfig, epath.Path], object]) -> str:
    """Trains the missing runs in `folder`, writes TITLE.md and TITLE.png there, and returns the table.

    A run's directory is named by a hash of its configuration, so shared arms are trained once, and the same command
    resumes an interrupted ablation. `train` is the function of omnivinci_jax/run.py.

    Raises:
        UserError, Preempted: see train/supervised.py.
    """
    folder = absolute(folder)
    records = open_records(absolute(config.train.data.held_out))
    asked = {kind_of(records.record(entry)) for entry in records.entries()}
    for kind in config.kinds:
        if kind not in asked:
            raise ConfigError(f"config.kinds: {kind!r}: {records.path} has no such question")
    runs: dict[str, list[epath.Path]] = {arm.label: [] for arm in config.arms}
    # Runs all arms with one seed before the next seed, so that early results cover every arm.
    planned = list(itertools.product(range(config.seeds), config.arms))
    for count, (seed_index, arm) in enumerate(planned, start=1):
        run = config.run(arm, seed_index)
        path = folder / "arms" / _config_hash(run) / f"seed_{run.seed}"
        if not (path / "results.json").exists():
            log.info("ablate: %d of %d, %s, seed %d: %s", count, len(planned), arm.label, run.seed, path)
            train(run, path)
            jax.clear_caches()
        runs[arm.label].append(path)
    results = {label: [json.loads((path / "results.json").read_text()) for path in runs[label]] for label in runs}
    table = _table(config, runs, results)
    name = config.title.lower().replace(" ", "_")
    (folder / f"{name}.md").write_text(f"# {config.title}\n\n{table}\n\n![{config.title}]({name}.png)\n")
    _plot(config.title, runs, results, folder / f"{name}.png")
    return table


def _merged(values: dict, changes: Mapping) -> dict:
    merged = dict(values)
    for name, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(values.get(name), dict)
        merged[name] = _merged(values[name], value) if nested else value
    return merged


def _config_hash(run: TrainConfig) -> str:
    """Returns a hash of a configuration, ignoring the seed and machine settings."""
    values = without_machine_keys(to_mapping(run))
    del values["seed"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _table(config: AblationConfig, runs: dict[str, list[epath.Path]], results: dict[str, list[dict]]) -> str:
    """Formats mean ± standard deviation over the seeds, in per cent."""
    header = ["arm", *config.kinds, "all questions"]
    header += ["sound tokens a minute", "first token, ms"] if config.costs else []
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for arm in config.arms:
        found = results[arm.label]
        columns = [[result["by_kind"][kind] for result in found] for kind in config.kinds]
        columns.append([result["overall"] for result in found])
        cells = [arm.label, *map(_mean_and_deviation, columns)]
        if config.costs:
            run = config.run(arm, 0)
            minute = 60 * run.model.sampling_rate / run.model.window_samples * run.model.window_tokens
            seconds = _first_token(runs[arm.label][0] / "model", absolute(run.data.held_out))
            cells += [f"{minute:.0f}", f"{1000 * seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    questions = ", ".join(f"{count} {kind}" for kind, count in found[0]["counts"].items())
    return "\n".join([*lines, "", f"Per cent of held-out questions ({questions}); mean ± deviation of {config.seeds}."])


def _mean_and_deviation(values: list[float]) -> str:
    deviation = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{deviation}"


def _first_token(model: epath.Path, held_out: epath.Path) -> float:
    """Measures the median seconds to the first token of questions about uncached clips, after compilation."""
    assistant, records = load(str(model)), open_records(held_out)
    entries = records.entries()
    chosen = entries[:: max(1, len(entries) // (2 * _TIMED_QUESTIONS))][: 2 * _TIMED_QUESTIONS]
    asked = [records.conversation(entry).unanswered for entry in chosen]
    times = [assistant.generate(question, max_new_tokens=1).first_token_seconds for question in asked]
    return float(np.median(times[len(times) // 2 :]))  # the first half compiles


def _curves(paths: list[epath.Path]) -> Iterator[Curve]:
    for path in paths:
        lines = [line for line in read_metrics(path / "metrics.jsonl") if line["split"] == "val"]
        yield Curve([line["step"] for line in lines], [line["accuracy"] for line in lines])


def _plot(title: str, runs: dict[str, list[epath.Path]], results: dict[str, list[dict]], path: epath.Path) -> None:
    """Plots validation accuracy by step (mean thick, seeds thin) and held-out accuracy as bars."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = list(runs)
    for index, (name, paths) in enumerate(runs.items()):
        colour, curves = f"C{index}", list(_curves(paths))
        for curve in curves:
            left.plot(*curve, color=colour, linewidth=0.6, alpha=0.4)
        left.plot(curves[0].steps, np.mean([curve.accuracy for curve in curves], axis=0), color=colour, label=name)
        found = [result["overall"] for result in results[name]]
        right.barh(index, np.mean(found), color=colour, alpha=0.7)
        right.plot(found, [index] * len(found), "k.", markersize=5)
    left.set(xlabel="step", ylabel="validation accuracy", ylim=(0, 1))
    left.legend(fontsize=8)
    right.set(xlabel="held-out accuracy (dots: seeds)", xlim=(0, 1), yticks=range(len(names)), yticklabels=names)
    right.invert_yaxis()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=120)
    plt.close(figure)
