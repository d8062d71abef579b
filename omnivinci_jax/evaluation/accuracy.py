"""Exact-match accuracy of a model on a JSONL file, overall and by the `kind` that its lines name, and retrieval."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from omnivinci_jax import model_dir
from omnivinci_jax.data.index import Index, build_index
from omnivinci_jax.data.loader import plan_all, read_batches
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.sources import open_records
from omnivinci_jax.errors import DataError
from omnivinci_jax.evaluation.scoring import make_eval_step
from omnivinci_jax.mesh.mesh import on_mesh
from omnivinci_jax.mesh.processes import is_main
from omnivinci_jax.mesh.rules import BATCH_AXES, own_groups, put_batch
from omnivinci_jax.models.attention_kernels import choose_implementation
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig
from omnivinci_jax.train.losses import contrastive_loss

_NO_LIMIT = Capacity(*[2**31] * 5)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy: the share of samples whose every trained token greedy decoding would have said.

    loss: mean over trained tokens; counts: samples of each kind; skipped: a line for each sample that was not measured.
    retrieval: OmniAlignNet's accuracies (`contrastive_loss`) over all videos with sound, and their number `clips`;
        empty where there is none, or nobody asked.
    """

    overall: float
    by_kind: dict[str, float]
    counts: dict[str, int]
    loss: float
    skipped: tuple[str, ...]
    retrieval: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Everything by one name each."""
        return {"accuracy": self.overall, "loss": self.loss, **self.by_kind, **self.retrieval}


def evaluate(
    eval_step: Callable, params: dict, index: Index, processor: Processor, settings: DataConfig, mesh: Mesh
) -> Evaluation:
    """Measures every sample of a file once; every process gets the whole result. Raises DataError where none can be."""
    plan, own = plan_all(index, settings), own_groups(settings.groups, mesh)
    batches = read_batches(index, plan, processor, settings, own, start=0, stop=len(plan) // settings.groups)
    kinds, right, skipped, losses, weights, clips = [], [], [], 0.0, 0.0, {}
    name = f"evaluate {index.path.name}"
    bar = tqdm(total=len(index), desc=name, unit=" samples", leave=False, mininterval=0.5, disable=not is_main())
    for step, (batch, reasons) in enumerate(batches):
        scores = jax.device_get(eval_step(params, put_batch(batch, settings.groups, mesh)))
        losses += float(scores.losses.sum())
        weights += float(scores.weights.sum())
        if scores.clips:
            there = scores.clip_source > 0
            pairs = zip(scores.clips.vision[there], scores.clips.audio[there], strict=True)
            clips |= dict(zip(scores.clip_source[there].tolist(), pairs, strict=True))  # each file once
        for group, rows in enumerate(plan[step * settings.groups :][: settings.groups]):
            for row, samples in enumerate(rows):
                for segment, sample in enumerate(samples, start=1):
                    slots = scores.segment_ids[group, row] == segment
                    if not slots.any():
                        skipped.append(reasons.get(sample, f"{index.where(sample)}: not readable on its host"))
                    elif not scores.weights[group, row][slots].any():
                        skipped.append(f"{index.where(sample)}: the assistant says nothing that could be right")
                    else:
                        right.append(bool(scores.right[group, row][slots].all()))
                        kinds.append(kind_of(index.record(sample)))
                    bar.update()
    bar.close()
    if not right:
        raise DataError(f"{index.path}: no sample could be measured:\n  " + "\n  ".join(skipped[:20]))
    by_kind = defaultdict(list)
    for kind, answer in zip(kinds, right, strict=True):
        by_kind[kind].append(answer)
    return Evaluation(
        overall=float(np.mean(right)),
        by_kind={kind: float(np.mean(answers)) for kind, answers in sorted(by_kind.items())},
        counts={kind: len(answers) for kind, answers in sorted(by_kind.items())},
        loss=losses / max(weights, 1.0),
        skipped=(*index.problems, *skipped),
        retrieval=_retrieval(clips),
    )


def kind_of(record: dict) -> str:
    """The kind of question that a record asks, as it names it."""
    return str(record.get("kind") or "all")


def _retrieval(clips: dict[int, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Of the two embeddings of each file, by its number."""
    if not clips:
        return {}
    vision, audio = (jnp.stack(stream) for stream in zip(*clips.values(), strict=True))
    _, metrics = contrastive_loss(vision, audio, jnp.array(list(clips)))
    return {name: float(value) for name, value in metrics.items()}


def evaluate_file(folder: epath.Path, data: epath.Path, drop: str, rows: int, mesh: Mesh) -> Evaluation:
    """Measures a model directory on a JSONL file.

    Args:
        folder: the model directory, whose parameters are sharded over the mesh.
        data: JSONL file, or folder of shards.
        drop: the stream to leave out (`Processor`).
        rows: conversations of a group; rows are as long as the longest conversation.
        mesh: each of its batch shards measures one group at a time.
    """
    model, params, processor = model_dir.load(folder, mesh=mesh)
    processor = dataclasses.replace(processor, drop=drop)
    index = build_index(open_records(data), processor, _NO_LIMIT, "skip")
    if not len(index):
        raise DataError(f"{data}: no sample can be used:\n  " + "\n  ".join(index.problems[:20]))
    slots, tiles, windows, clips = (int(most) for most in index.sizes.max(axis=0))
    shards = mesh.shape["context"] * mesh.shape["tensor"]  # which slots, tiles and windows of a group must divide over
    slots, tiles, windows = (-(-max(n, 1) // shards) * shards for n in (slots, rows * tiles, rows * windows))
    capacity = Capacity(rows, slots, tiles, windows, max(rows * clips, 1))
    attention = choose_implementation("auto", mesh.devices.flat[0].platform)
    model = model.clone(compute=dataclasses.replace(model.compute, attention=attention))
    groups = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    settings = DataConfig(capacity=capacity, groups=groups, workers=0)
    with on_mesh(mesh):
        return evaluate(make_eval_step(model, mesh), params, index, processor, settings, mesh)


def retrieval_table(evaluation: Evaluation) -> str:
    """A Markdown table: R@1 and R@5 in both directions."""
    rows = [
        f"| {label} | {evaluation.retrieval[f'{name}_r1']:.1%} | {evaluation.retrieval[f'{name}_r5']:.1%} |"
        for label, name in (("vision → audio", "vision_to_audio"), ("audio → vision", "audio_to_vision"))
    ]
    return "\n".join([f"| among {evaluation.retrieval['clips']:.0f} clips | R@1 | R@5 |", "|---|---|---|", *rows])


def accuracy_table(evaluation: Evaluation) -> str:
    """A Markdown table: accuracy by kind, with the number of questions."""
    rows = [f"| {kind} | {accuracy:.1%} | {evaluation.counts[kind]} |" for kind, accuracy in evaluation.by_kind.items()]
    total = f"| **overall** | **{evaluation.overall:.1%}** | **{sum(evaluation.counts.values())}** |"
    return "\n".join(["| kind | accuracy | questions |", "|---|---|---|", *rows, total])
