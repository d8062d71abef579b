"""Timelines: four colours seen and four sounds heard in a clip, and the ranks that its joint questions ask for.

A joint question must not be answerable from one stream. Its wrong options also occur in the clip, and events get random
names, so the only possible shortcut is the rank of the answer in time: given its whole stream, the answer must be the
1st, 2nd, 3rd or 4th event with probability 1/4 each. Two facts make that hard: a long sight contains a sound more often
than a short one, and nothing comes before an event at the very start. Fitting one stream to the other cannot give both
streams uniform ranks. So sight streams and sound streams are drawn independently, each with the rank of its answer, and
a perfect bipartite matching pairs every sight stream with a sound stream for which both ranks hold. No stream is
dropped or changed for its rank, so rank and stream stay independent.

Streams are drawn on a clip of BASE seconds, with the smallest allowed distances. A random uneven stretch, independent
of the events and the same for both streams, then makes clips of up to LONGEST seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan", "white", "orange")
SOUNDS = ("hum", "tone", "beep", "whistle", "hiss", "buzz", "siren", "clicks")
SPLITS = ("train", "val", "held_out", "silent", "soundtrack", "log")
BASE, LONGEST = 6.5, 12.0  # s
APART = 0.5  # minimum seconds between onsets whose order is asked: one frame at 2 frames per second
MARGIN = 0.1  # minimum seconds by which a sight extends beyond the sound of a `while` question
GROUP = 512  # clips that are matched together: enough for a perfect matching to exist
SIZES = ((96, 96),) * 6 + ((128, 96), (96, 128), (112, 84), (80, 112))  # width, height; even, as yuv420p requires

Lead = Literal["colour", "sound"]  # the stream that has the answer of the clip's `order` question


@dataclass(frozen=True)
class Event:
    """A colour on screen, or a sound: `start` and `end` in seconds from the start of the clip."""

    name: str
    start: float
    end: float

    @property
    def second(self) -> int:
        """The whole second in which the event begins."""
        return int(self.start)

    @property
    def has_clear_second(self) -> bool:
        """Whether the event begins far enough from a full second to ask for its second."""
        return 0.2 <= self.start % 1 <= 0.8


@dataclass(frozen=True)
class Clip:
    """The ground truth of a clip.

    Ranks count from 0 in time. `when` maps an event's name to the four options of its `when` question, in seconds.
    """

    seed: int
    split: str
    number: int
    duration: float
    size: tuple[int, int]
    container: str
    sights: tuple[Event, ...]
    sounds: tuple[Event, ...]
    lead: Lead
    while_rank: int
    order_rank: int
    when: dict[str, tuple[int, ...]]

    @property
    def is_full(self) -> bool:
        """Whether the clip has all its events."""
        return len(self.sights) == 4

    @property
    def name(self) -> str:
        """The clip's file name."""
        return f"{self.split}_{self.number:06d}.{self.container}"

    def rng(self, purpose: Literal["render", "questions", "thin"]) -> np.random.Generator:
        """Returns a random generator that depends only on the clip and the purpose."""
        return generator(self.seed, self.split, self.number, purpose)


def generator(seed: int, split: str, number: int, purpose: str) -> np.random.Generator:
    """Returns the random generator for one purpose of one numbered item of a split."""
    return np.random.default_rng([seed, SPLITS.index(split), number, *purpose.encode()])


def draw_clips(seed: int, split: str, count: int, paired: bool = False) -> list[Clip]:
    """Draws the first `count` clips of a split; clip i does not depend on the count.

    Half of the training clips lose events: a few events alone teach a model what to look for in a full clip.
    paired: every colour has its sound, and a full clip has both or neither, so that matching streams can be recognised.
        Questions about time are unaffected.
    """
    return [draw_clip(seed, split, number, paired) for number in range(count)]


def draw_clip(seed: int, split: str, number: int, paired: bool = False) -> Clip:
    """Draws clip `number` of a split; see `draw_clips`."""
    clip = _draw_group(seed, split, number // GROUP, paired)[number % GROUP]
    return _thinned(clip) if split == "train" else clip


def _thinned(clip: Clip) -> Clip:
    """Keeps one, two, or all four events of each stream, chosen at random."""
    rng, events = clip.rng("thin"), (1, 2, 4, 4)[clip.number // 2 % 4]
    sights, sounds = (
        tuple(stream[i] for i in sorted(rng.permutation(len(stream))[:events])) for stream in (clip.sights, clip.sounds)
    )
    when = {event.name: clip.when[event.name] for event in (*sights, *sounds) if event.name in clip.when}
    return replace(clip, sights=sights, sounds=sounds, when=when)


def inside(
    sights: Float[np.ndarray, "*#n sights 2"], sounds: Float[np.ndarray, "*#n sounds 2"]
) -> Bool[np.ndarray, "*#n sights sounds"]:
    """Returns whether sight i was on screen during all of sound j, with a margin."""
    sights, sounds = sights[..., :, None, :], sounds[..., None, :, :]
    return (sights[..., 0] + MARGIN <= sounds[..., 0]) & (sounds[..., 1] <= sights[..., 1] - MARGIN)


def next_after(
    lead: Float[np.ndarray, "*#n onsets"], anchors: Float[np.ndarray, "*#n anchors"]
) -> Bool[np.ndarray, "*#n onsets anchors"]:
    """Returns whether onset i of the leading stream is the first after anchor j, with none within APART of it."""
    previous = np.concatenate([np.full_like(lead[..., :1], -np.inf), lead[..., :-1]], axis=-1)
    lead, previous, anchors = lead[..., :, None], previous[..., :, None], anchors[..., None, :]
    return (previous + APART <= anchors) & (anchors <= lead - APART)


def spans(events: tuple[Event, ...]) -> Float[np.ndarray, "n 2"]:
    """Returns the starts and ends of events, in seconds."""
    return np.array([(event.start, event.end) for event in events])


# Minimum seconds of a stream's nine parts: gap, event, gap, event, … gap. The leading stream (with the answers to
# `order`) begins late enough for an event to come before it, and leaves room between onsets for one APART from both.
# The first sight before a leading sound stream is long enough to reach its first sound.
LEAST_PARTS = {
    ("sights", "colour"): (0.75, 1.0, 0.3, 1.0, 0.3, 1.0, 0.3, 1.0, 0.1),
    ("sounds", "colour"): (0.1, 0.5, 0.15, 0.5, 0.15, 0.5, 0.15, 0.5, 0.1),
    ("sights", "sound"): (0.1, 1.4, 0.1, 1.0, 0.1, 1.0, 0.1, 1.0, 0.1),
    ("sounds", "sound"): (0.75, 0.5, 0.9, 0.5, 0.9, 0.5, 0.9, 0.5, 0.1),
}


def _draw_streams(
    rng: np.random.Generator, count: int, kind: Literal["sights", "sounds"], lead: Lead
) -> Float[np.ndarray, "count 4 2"]:
    least = np.array(LEAST_PARTS[kind, lead])
    grows = np.ones(9)
    grows[1::2] = kind == "sights"  # the length of a sound is drawn at the very end
    shares = rng.exponential(size=(count, 9)) * grows
    parts = least + (BASE - least.sum()) * shares / shares.sum(axis=1, keepdims=True)
    return np.cumsum(parts, axis=1)[:, :8].reshape(count, 4, 2)


Pairs = tuple[
    Float[np.ndarray, "n 4 2"], Float[np.ndarray, "n 4 2"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]
]  # sights, sounds, while ranks, order ranks


def _pair_for_colours(rng: np.random.Generator, count: int) -> Pairs:
    """Pairs streams when both answers are sights: only sights have ranks, and choose among 8 times as many sounds."""
    sights = _draw_streams(rng, count, "sights", "colour")
    sounds = _draw_streams(rng, 8 * count, "sounds", "colour")
    ranks = rng.integers(4, size=(2, count))
    contains = np.any(inside(sights[:, None], sounds[None]), axis=-1)
    follows = np.any(next_after(sights[:, None, :, 0], sounds[None, ..., 0]), axis=-1)
    rows = np.arange(count)
    partner = _match(contains[rows, :, ranks[0]] & follows[rows, :, ranks[1]])
    return _pair_for_colours(rng, count) if partner is None else (sights, sounds[partner], *ranks)


def _pair_for_sounds(rng: np.random.Generator, count: int) -> Pairs:
    """Pairs streams where `while` asks for a sight and `order` for a sound: both streams have a rank."""
    drawn = 3 * count // 2
    sights, sounds = (_draw_streams(rng, drawn, kind, "sound") for kind in ("sights", "sounds"))
    ranks = rng.integers(4, size=(2, drawn))
    contains = np.any(inside(sights[:, None], sounds[None]), axis=-1)  # [sights, sounds, rank]
    follows = np.any(next_after(sounds[None, ..., 0], sights[:, None, :, 0]), axis=-1)
    rows = np.arange(drawn)
    asked_hold, asked_follow = contains[rows, :, ranks[0]], follows[:, rows, ranks[1]]
    # Drops streams with few partners under any rank; this does not depend on their own rank, so ranks stay uniform.
    kept_sights = np.flatnonzero((contains & asked_follow[..., None]).sum(axis=1).min(axis=-1) >= 4)[:count]
    kept_sounds = np.flatnonzero((follows & asked_hold[..., None]).sum(axis=0).min(axis=-1) >= 4)[:count]
    possible = (asked_hold & asked_follow)[np.ix_(kept_sights, kept_sounds)]
    partner = None if min(possible.shape) < count else _match(possible)
    if partner is None:
        return _pair_for_sounds(rng, count)
    kept_sounds = kept_sounds[partner]
    return sights[kept_sights], sounds[kept_sounds], ranks[0, kept_sights], ranks[1, kept_sounds]


def _match(possible: Bool[np.ndarray, "rows columns"]) -> Int[np.ndarray, " rows"] | None:
    """Matches each row to a different column; None if there is no perfect matching (one group in two or three)."""
    partner = maximum_bipartite_matching(csr_matrix(possible), perm_type="column")
    return None if (partner < 0).any() else partner


@lru_cache(maxsize=4)  # drawing one clip costs as much as drawing its whole group
def _draw_group(seed: int, split: str, group: int, paired: bool) -> tuple[Clip, ...]:
    rng = generator(seed, split, group, "timeline")
    half = GROUP // 2
    leads: dict[Lead, Pairs] = {"colour": _pair_for_colours(rng, half), "sound": _pair_for_sounds(rng, half)}
    drafts = []
    for index in range(GROUP):
        lead: Lead = "colour" if index % 2 == 0 else "sound"
        sights, sounds, while_rank, order_rank = (array[index // 2] for array in leads[lead])
        duration, *streams = _stretch(rng, sights, sounds, paired)
        drafts.append((lead, duration, *streams, int(while_rank), int(order_rank)))
    _, _, all_sights, all_sounds, _, _ = zip(*drafts, strict=True)
    when_seen, when_heard = _when_options(rng, all_sights), _when_options(rng, all_sounds)
    return tuple(
        Clip(
            seed=seed,
            split=split,
            number=group * GROUP + index,
            duration=duration,
            size=SIZES[rng.integers(len(SIZES))],
            container="webm" if rng.random() < 0.15 else "mp4",
            sights=sights,
            sounds=sounds,
            lead=lead,
            while_rank=while_rank,
            order_rank=order_rank,
            when=when_seen[index] | when_heard[index],
        )
        for index, (lead, duration, sights, sounds, while_rank, order_rank) in enumerate(drafts)
    )


def _stretch(
    rng: np.random.Generator, sights: Float[np.ndarray, "4 2"], sounds: Float[np.ndarray, "4 2"], paired: bool
) -> tuple[float, tuple[Event, ...], tuple[Event, ...]]:
    """Returns duration and named events. Distances only grow; each stream has an onset with a clear second."""
    while True:
        duration = rng.uniform(BASE, LONGEST)
        knots = np.linspace(0, BASE, 8)
        slack = (duration - BASE) * rng.dirichlet(np.full(7, 0.5))
        stretched = knots + np.concatenate([[0], np.cumsum(slack)])
        seen, heard = (np.interp(stream, knots, stretched) for stream in (sights, sounds))
        heard[:, 1] = np.minimum(heard[:, 1], heard[:, 0] + rng.uniform(0.5, 1.0, size=4))
        shown = rng.permutation(len(COLOURS))[:4]
        played = rng.permutation(shown) if paired else rng.permutation(len(SOUNDS))[:4]
        streams = _name(COLOURS, shown, seen), _name(SOUNDS, played, heard)
        if all(any(event.has_clear_second for event in stream) for stream in streams):
            return duration, *streams


def _name(names: tuple[str, ...], chosen: Int[np.ndarray, " 4"], stream: Float[np.ndarray, "4 2"]) -> tuple[Event, ...]:
    return tuple(Event(names[i], *map(float, span)) for i, span in zip(chosen, stream, strict=True))


def _when_options(rng: np.random.Generator, streams: Sequence[tuple[Event, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """Returns for each clip the four options, in seconds, of every event with a clear second.

    The seconds of the whole group are sorted and sampled at four equal distances, from each starting point in turn:
    each of four such seconds is the answer to one question with these options. They are mostly two or more apart.
    """
    askable = [(clip, event) for clip, stream in enumerate(streams) for event in stream if event.has_clear_second]
    askable = sorted((askable[i] for i in rng.permutation(len(askable))), key=lambda pair: pair[1].second)
    options: list[dict[str, tuple[int, ...]]] = [{} for _ in streams]
    for index, (clip, event) in enumerate(askable):
        offered = [(index + quarter * len(askable) // 4) % len(askable) for quarter in range(4)]
        options[clip][event.name] = tuple(sorted(askable[i][1].second for i in offered))
    return options
