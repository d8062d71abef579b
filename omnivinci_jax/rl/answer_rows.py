"""Packs prompts with their answers into the rows of a batch. The answers to a prompt share its media."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.rl.prompts import LoadedPrompt
from omnivinci_jax.sequence.assemble import EmptyMedia, PackedRow, assemble
from omnivinci_jax.sequence.batch import TEXT, Batch, Capacity
from omnivinci_jax.sequence.row import Row


class Span(NamedTuple):
    """Where the tokens of an answer are predicted: slots `start` to `end` of a row of a group."""

    group: int
    row: int
    start: int
    end: int


def answer_row(prompt: Row, tokens: Sequence[int]) -> Row:
    """Returns the prompt's row with the answer's tokens at its end, which are trained."""
    count = len(tokens)
    zeros = np.zeros(count, np.int32)
    return replace(
        prompt,
        tokens=np.concatenate([prompt.tokens, np.array(tokens, np.int32)]),
        trained=np.concatenate([np.zeros(len(prompt), bool), np.ones(count, bool)]),
        slot_kind=np.concatenate([prompt.slot_kind, np.full(count, TEXT, np.int8)]),
        slot_index=np.concatenate([prompt.slot_index, zeros]),
    )


def pack_answers(
    prompts: Sequence[LoadedPrompt | None],
    answers: Sequence[Sequence[Sequence[int]]],
    config: OmniVinciConfig,
    capacity: Capacity,
    groups: int,
    media: EmptyMedia | None = None,
) -> tuple[Batch, list[list[Span]]]:
    """Packs the answers to each prompt into one group, or, with more groups than prompts, evenly into several.

    Args:
        prompts: as many for each group; None is a prompt that could not be read.
        answers: tokens of the answers to each prompt.
        config: of the model.
        capacity: of a group; `prompt_capacity` makes sure that everything fits.
        groups: number of groups.
        media: what the prompts hold; None is raw media.

    Returns:
        the batch in NumPy, with a loss weight of 1 at each answer token, and the spans of each prompt's answers.
    """
    share, parts, assembled = max(len(prompts) // groups, 1), max(groups // len(prompts), 1), []
    spans: list[list[Span]] = [[] for _ in prompts]
    for group in range(groups):
        own = []  # the answers of this group, and whether each shares the media of the one before it
        for n in range(group // parts * share, (group // parts + 1) * share):
            if prompt := prompts[n]:
                part = np.array_split(np.arange(len(answers[n])), parts)[group % parts].tolist()
                own += [(n, prompt, answers[n][answer], answer != part[0]) for answer in part]
        rows = first_fit(np.array([len(prompt.row) + len(tokens) for _, prompt, tokens, _ in own], int), capacity)
        used, segments, packed = np.zeros(capacity.rows, int), np.zeros(capacity.rows, int), []
        for index, (n, prompt, tokens, shares_media) in zip(rows, own, strict=True):
            row = answer_row(prompt.row, tokens)
            end = int(used[index]) + len(row) - 1
            spans[n].append(Span(group, index, end - len(tokens), end))
            used[index] += len(row)
            segments[index] += 1
            packed.append(
                PackedRow(index, int(segments[index]), row, prompt.tiles, prompt.windows, prompt.source, shares_media)
            )
        assembled.append(assemble(packed, config, capacity, media))
    return jax.tree.map(lambda *arrays: np.stack(arrays), *assembled), spans


def first_fit(lengths: Int[np.ndarray, " n"], capacity: Capacity) -> list[int]:
    """Returns the row of each length: the longest first, each in the first row that has room for it."""
    free, rows = np.full(capacity.rows, capacity.slots), np.zeros(len(lengths), int)
    for index in np.argsort(-lengths, kind="stable"):
        rows[index] = np.flatnonzero(free >= lengths[index])[0]
        free[rows[index]] -= lengths[index]
    return rows.tolist()


def at_tokens(
    shape: tuple[int, ...], spans: list[list[Span]], values: Callable[[int, int], Any]
) -> Float32[np.ndarray, "G R T"]:
    """Returns an array with `values(prompt, answer)`, a number or one for each token, at the answers; 0 elsewhere."""
    array = np.zeros(shape, np.float32)
    for prompt, found in enumerate(spans):
        for answer, span in enumerate(found):
            array[span.group, span.row, span.start : span.end] = values(prompt, answer)
    return array
