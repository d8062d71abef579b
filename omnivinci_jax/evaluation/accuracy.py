"""Exact-match accuracy of a model on a JSONL file, overall and by `kind` of question, and retrieval accuracy."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from omnivinci_jax import model_dir
from omnivinci_jax.data.index import Index, build_index
from omnivinci_jax.data.loader import NO_LIMIT, plan_all, read_batches, whole_file
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.records import check_skipped
from omnivinci_jax.data.sources import open_records
from omnivinci_jax.errors import DataError
from omnivinci_jax.evaluation.scoring import make_eval_step
from omnivinci_jax.mesh.mesh import on_mesh
from omnivinci_jax.mesh.processes import is_main
from omnivinci_jax.mesh.rules import BATCH_AXES, local_groups, put_batch
from omnivinci_jax.models.attention_kernels import choose_implementation
from omnivinci_jax.sequence.chat import valid_text
from omnivinci_jax.settings import DataConfig
from omnivinci_jax.train.losses import contrastive_loss


@dataclass(frozen=True)
class Evaluation:
    """Accuracy: the fraction of samples whose trained tokens greedy decoding would all predict.

    loss: mean over trained tokens; counts: samples of each kind; skipped: one line per skipped sample.
    retrieval: OmniAlignNet's accuracies (`contrastive_loss`) over all videos with sound, and their number `clips`;
        empty without such videos, or without OmniAlignNet.
    """

    overall: float
    by_kind: dict[str, float]
    counts: dict[str, int]
    loss: float
    skipped: tuple[str, ...]
    retrieval: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name."""
        return {"accuracy": self.overall, "loss": self.loss, **self.by_kind, **self.retrieval}


def evaluate(
    eval_step: Callable, params: dict, index: Index, processor: Processor, settings: DataConfig, mesh: Mesh
) -> Evaluation:
    """Evaluates every sample once; all processes get the same result.

    Raises:
        DataError: all samples were skipped, or more than `settings.max_skipped` cannot be read.
    """
    plan, local = plan_all(index, settings), local_groups(settings.groups, mesh)
    batches = read_batches(index, plan, processor, settings, local, start=0, stop=len(plan) // settings.groups)
    kinds, correct, unreadable, unanswered, losses, weights, clips = [], [], [], [], 0.0, 0.0, {}
    name = f"evaluate {index.path.name}"
    bar = tqdm(total=len(index), desc=name, unit=" samples", leave=False, mininterval=0.5, disable=not is_main())
    for step, (batch, reasons) in enumerate(batches):
        scores = jax.device_get(eval_step(params, put_batch(batch, settings.groups, mesh)))
        losses += float(scores.losses.sum())
        weights += float(scores.weights.sum())
        if scores.clips:
            has_clip = scores.clip_source > 0
            pairs = zip(scores.clips.vision[has_clip], scores.clips.audio[has_clip], strict=True)
            clips |= dict(zip(scores.clip_source[has_clip].tolist(), pairs, strict=True))  # deduplicates files
        for group, rows in enumerate(plan[step * settings.groups :][: settings.groups]):
            for row, samples in enumerate(rows):
                for segment, sample in enumerate(samples, start=1):
                    slots = scores.segment_ids[group, row] == segment
                    if not slots.any():
                        unreadable.append(reasons.get(sample, f"{index.where(sample)}: unreadable on its host"))
                    elif not scores.weights[group, row][slots].any():
                        unanswered.append(f"{index.where(sample)}: the sample has no answer to compare with")
                    else:
                        correct.append(bool(scores.correct[group, row][slots].all()))
                        kinds.append(kind_of(index.record(sample)))
                    bar.update()
    bar.close()
    skipped = [*index.problems, *unreadable, *unanswered]
    if len(unreadable) > settings.max_skipped * max(len(index), 100):  # as in training
        check_skipped(unreadable, len(index), settings.max_skipped, index.path)
    if not correct:
        raise DataError(f"{index.path}: no sample could be evaluated:\n  " + "\n  ".join(skipped[:20]))
    by_kind = defaultdict(list)
    for kind, answer in zip(kinds, correct, strict=True):
        by_kind[kind].append(answer)
    return Evaluation(
        overall=float(np.mean(correct)),
        by_kind={kind: float(np.mean(answers)) for kind, answers in sorted(by_kind.items())},
        counts={kind: len(answers) for kind, answers in sorted(by_kind.items())},
        loss=losses / max(weights, 1.0),
        skipped=tuple(skipped),
        retrieval=_retrieval(clips),
    )


def kind_of(record: dict) -> str:
    """Returns the `kind` of a record's question, or "all" if it has none."""
    return valid_text(str(record.get("kind") or "all"))


def _retrieval(clips: dict[int, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Computes retrieval metrics from the two embeddings of each file; `clips` is keyed by file id."""
    if not clips:
        return {}
    vision, audio = (np.stack(stream) for stream in zip(*clips.values(), strict=True))
    _, metrics = jax.jit(contrastive_loss)(vision, audio, np.array(list(clips), np.int32))  # one program, not fifty
    return {name: float(value) for name, value in metrics.items()}


def evaluate_file(
    folder: epath.Path, data: epath.Path, drop: str, rows: int, mesh: Mesh, max_skipped: float = 0.01
) -> Evaluation:
    """Evaluates a model directory on a JSONL file.

    Args:
        folder: the model directory.
        data: JSONL file, or folder of shards.
        drop: the stream to drop (`Processor`).
        rows: conversations per group; rows are as long as the longest conversation.
        mesh: shards the parameters; each batch shard evaluates one group at a time.
        max_skipped: largest share of the samples that may be unreadable.

    Raises:
        DataError: more of them are, or none can be evaluated.
    """
    model, params, processor = model_dir.load(folder, mesh=mesh)
    processor = dataclasses.replace(processor, drop=drop)
    index = build_index(open_records(data), processor, NO_LIMIT, "skip")
    if not len(index):
        raise DataError(f"{data}: no usable sample:\n  " + "\n  ".join(index.problems[:20]))
    check_skipped(index.problems, len(index) + len(index.problems), max_skipped, data)
    divisor = mesh.shape["context"] * mesh.shape["tensor"]  # of the slots, tiles and windows of a group
    attention = choose_implementation("auto", mesh.devices.flat[0].platform)
    model = model.clone(compute=dataclasses.replace(model.compute, attention=attention))
    groups = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    settings = whole_file(index, rows, groups, divisor, max_skipped)
    with on_mesh(mesh):
        return evaluate(make_eval_step(model, mesh), params, index, processor, settings, mesh)


def retrieval_table(evaluation: Evaluation) -> str:
    """Formats R@1 and R@5 in both directions as a Markdown table."""
    rows = [
        f"| {label} | {evaluation.retrieval[f'{name}_r1']:.1%} | {evaluation.retrieval[f'{name}_r5']:.1%} |"
        for label, name in (("vision → audio", "vision_to_audio"), ("audio → vision", "audio_to_vision"))
    ]
    return "\n".join([f"| among {evaluation.retrieval['clips']:.0f} clips | R@1 | R@5 |", "|---|---|---|", *rows])


def accuracy_table(evaluation: Evaluation) -> str:
    """Formats accuracy and number of questions by kind as a Markdown table."""
    rows = [f"| {kind} | {accuracy:.1%} | {evaluation.counts[kind]} |" for kind, accuracy in evaluation.by_kind.items()]
    total = f"| **overall** | **{evaluation.overall:.1%}** | **{sum(evaluation.counts.values())}** |"
    return "\n".join(["| kind | accuracy | questions |", "|---|---|---|", *rows, total])
