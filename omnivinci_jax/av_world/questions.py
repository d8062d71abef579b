"""Questions, captions and conversations about a clip, and the vocabulary they use.

There are five kinds of multiple-choice questions. `seen`, `heard` and `when` need one stream; `while` and `order` need
both, aligned in time, and are balanced (see `timeline`). `order` asks for the next event of the other stream, since a
literal "did red or the beep come first" cannot be balanced: the sight would be early under one answer and late under
the other, so its time alone would reveal the answer. A clip has one form of `order`, the one that its streams were
drawn for.

The two rank kinds are for fine-tuning; no data set mixes them with the others.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from omnivinci_jax.av_world.timeline import COLOURS, SOUNDS, Clip, Event, inside, next_after, spans

Kind = Literal["seen", "heard", "while", "order", "when", "rank_seen", "rank_heard"]
KINDS: tuple[Kind, ...] = ("seen", "heard", "while", "order", "when")
JOINT_KINDS: tuple[Kind, ...] = ("while", "order")

# Every form ends with the asked event, at the same distance from the answer.
SEEN = "Which colour, {options}, was seen?"
HEARD = "Which sound, {options}, was heard?"
WHILE = "Which colour, {options}, was on screen while the {asked} sounded?"
NEXT_COLOUR = "Which colour, {options}, came first after the {asked} began?"
NEXT_SOUND = "Which sound, {options}, came first after {asked} appeared?"
WHEN_SEEN = "At which second, {options}, did {asked} appear?"
WHEN_HEARD = "At which second, {options}, did the {asked} sound?"
LIST_COLOURS = "List the colours by second."
LIST_SOUNDS = "List the sounds by second."
LIST_WHILE = "List the sounds with the colour on screen."
LIST_NEXT_COLOUR = "List the sounds with the next colour."
LIST_NEXT_SOUND = "List the colours with the next sound."
EACH_WHEN = "Name the second of {names}."
EACH_WHILE = "Name the colour on screen during {names}."
EACH_NEXT_COLOUR = "Name the next colour after {names}."
EACH_NEXT_SOUND = "Name the next sound after {names}."
NOTHING = "none"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
IMAGE = "Which colour, {options}, is the shape?"
SOUND = "Which sound, {options}, is it?"
SPEECH = "Which number, {options}, was said?"
SUBTRACT = "How many seconds from {start} to {end}?"
RANK_SEEN = "Which colour, {options}, was seen {asked}?"
RANK_HEARD = "Which sound, {options}, was heard {asked}?"
RANKS = ("first", "second", "third", "last")


@dataclass(frozen=True)
class Question:
    """A question with its four options in the order of the text; `asked` is the event that it names, empty if none."""

    kind: Kind
    template: str
    asked: str
    options: tuple[str, ...]
    answer: str

    @property
    def text(self) -> str:
        """The question with its options."""
        return self.template.format(asked=self.asked, options=f"{', '.join(self.options[:3])} or {self.options[3]}")


def multiple_choice(
    rng: np.random.Generator, kind: Kind, template: str, asked: str, answer: str, others: Iterable[str]
) -> Question:
    """Returns a question whose options are the answer and three others, in random order."""
    return Question(kind, template, asked, _shuffled(rng, [answer, *others]), answer)


def name_question(
    rng: np.random.Generator, kind: Kind, template: str, answer: str, present: Iterable[str], names: Sequence[str]
) -> Question:
    """Asks which of four names is present: the answer and three names that are not."""
    absent = [name for name in names if name not in present]
    return multiple_choice(rng, kind, template, "", answer, _shuffled(rng, absent)[:3])


def all_questions(clip: Clip, rng: np.random.Generator) -> dict[Kind, Sequence[Question]]:
    """Returns all possible questions about the clip, by kind, in random order.

    The first of each joint kind is the balanced one: the rank of its answer was drawn before the clip.
    """
    colours, sounds = ([event.name for event in stream] for stream in (clip.sights, clip.sounds))
    sight_spans, sound_spans = spans(clip.sights), spans(clip.sounds)

    def about_ranks(
        kind: Kind, template: str, holds: np.ndarray, names: list[str], asked: list[str], rank: int
    ) -> list[Question]:
        pairs = sorted(rng.permutation(np.argwhere(holds)), key=lambda pair: pair[0] != rank)
        all_names = COLOURS if names is colours else SOUNDS
        # Absent names fill up the options; a full clip needs none.
        absent = _shuffled(rng, [name for name in all_names if name not in names])[: 4 - len(names)]
        return [
            multiple_choice(rng, kind, template, asked[j], names[i], [n for n in (*names, *absent) if n != names[i]])
            for i, j in pairs
        ]

    if clip.lead == "colour":
        order = NEXT_COLOUR, next_after(sight_spans[:, 0], sound_spans[:, 0]), colours, sounds
    else:
        order = NEXT_SOUND, next_after(sound_spans[:, 0], sight_spans[:, 0]), sounds, colours
    when = [
        multiple_choice(
            rng,
            "when",
            WHEN_SEEN if event in clip.sights else WHEN_HEARD,
            event.name,
            NUMBERS[event.second],
            [NUMBERS[second] for second in clip.when[event.name] if second != event.second],
        )
        for event in (*clip.sights, *clip.sounds)
        if event.name in clip.when
    ]
    return {
        "seen": _shuffled(rng, [name_question(rng, "seen", SEEN, name, colours, COLOURS) for name in colours]),
        "heard": _shuffled(rng, [name_question(rng, "heard", HEARD, name, sounds, SOUNDS) for name in sounds]),
        "while": about_ranks("while", WHILE, inside(sight_spans, sound_spans), colours, sounds, clip.while_rank),
        "order": about_ranks("order", *order, clip.order_rank),
        "when": _shuffled(rng, when),
    }


def one_of_each(clip: Clip) -> list[Question]:
    """Returns one question of every kind, for evaluation, each in its own conversation."""
    return [questions[0] for questions in all_questions(clip, clip.rng("questions")).values()]


Turn = tuple[str, str]


def caption_turns(clip: Clip) -> dict[str, Turn]:
    """Returns dense captions of one stream and of both (the paper's omni captions, Section 3.2), by kind.

    They list events in time order: `seen` and `heard` with the second in which each begins, `while` and `order` with
    the fact that questions of these kinds ask for.
    """
    facts = _facts(clip)
    streams: tuple[tuple[Kind, str, tuple[Event, ...]], ...] = (
        ("seen", LIST_COLOURS, clip.sights),
        ("heard", LIST_SOUNDS, clip.sounds),
    )
    list_next = LIST_NEXT_COLOUR if clip.lead == "colour" else LIST_NEXT_SOUND
    joint: dict[Kind, str] = {"while": LIST_WHILE, "order": list_next}
    return {
        kind: (request, " ".join(f"{NUMBERS[event.second]} {event.name}" for event in events))
        for kind, request, events in streams
    } | {kind: (request, _each(facts[kind])) for kind, request in joint.items()}


def clip_log(clip: Clip) -> str:
    """Returns the clip as a text log: each second's number, then what is seen and heard in each of its halves."""
    words = []
    for half in range(math.ceil(2 * clip.duration)):
        start, end = half / 2, (half + 1) / 2
        words += [NUMBERS[half // 2]] if half % 2 == 0 else []
        words += [event.name for event in (*clip.sights, *clip.sounds) if event.start < end and start < event.end]
    return " ".join(words)


def lookup_turns(clip: Clip, rng: np.random.Generator) -> dict[Kind, Turn]:
    """Returns open questions, by kind, that name several events in random order; the answer has each event's fact."""
    each_next = EACH_NEXT_COLOUR if clip.lead == "colour" else EACH_NEXT_SOUND
    requests: dict[Kind, str] = {"when": EACH_WHEN, "while": EACH_WHILE, "order": each_next}
    facts, turns = _facts(clip), {}
    for kind, request in requests.items():
        shuffled = _shuffled(rng, facts[kind])
        turns[kind] = request.format(names=", ".join(name for name, _ in shuffled)), _each(shuffled)
    return turns


def _facts(clip: Clip) -> dict[Kind, list[tuple[str, str]]]:
    """Returns (event, fact) by kind: when: its second; while: the colour at its middle; order: the next event."""

    def first(stream: tuple[Event, ...], holds: Callable[[Event], bool]) -> str:
        return next((event.name for event in stream if holds(event)), NOTHING)

    leading, anchors = (clip.sights, clip.sounds) if clip.lead == "colour" else (clip.sounds, clip.sights)
    middles = [(sound.name, (sound.start + sound.end) / 2) for sound in clip.sounds]
    return {
        "when": [(event.name, NUMBERS[event.second]) for event in (*clip.sights, *clip.sounds)],
        "while": [(name, first(clip.sights, lambda s, m=middle: s.start <= m < s.end)) for name, middle in middles],
        "order": [(anchor.name, first(leading, lambda e, a=anchor: e.start > a.start)) for anchor in anchors],
    }


def _each(facts: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"{name} {fact}" for name, fact in facts)


def training_conversations(clip: Clip, repeats: int = 4) -> list[list[Turn]]:
    """Returns conversations about the clip: captions and lookups, and `repeats` conversations of six questions.

    No earlier turn reveals an answer, or the model would learn little from the clip. So questions never follow
    captions, captions in one conversation state different facts, and `seen` and `heard` precede questions that name
    their events.
    """
    rng = clip.rng("questions")
    captions, lookups = caption_turns(clip), lookup_turns(clip, rng)
    conversations = [
        list(_shuffled(rng, [captions["seen"], captions["heard"]])),
        [captions["while"], lookups["when"]],
        [captions["order"], lookup_turns(clip, rng)["when"]],
        list(_shuffled(rng, [lookups["while"], lookups["order"]])),
    ]
    supply = {kind: itertools.cycle(candidates) for kind, candidates in all_questions(clip, rng).items() if candidates}
    for repeat in range(repeats):
        kinds: list[Kind] = list(_shuffled(rng, ["while", "order", "when", "while", "order", "when"]))
        if repeat % 2:
            kinds = [*_shuffled(rng, ["seen", "heard"]), *kinds[:4]]
        # No question repeats, and each conversation shuffles the options again.
        asked = dict.fromkeys(next(supply[kind]) for kind in kinds if kind in supply)
        shuffled = [replace(question, options=_shuffled(rng, question.options)) for question in asked]
        conversations.append([(question.text, question.answer) for question in shuffled])
    return [turns for turns in conversations if turns]


def rank_questions(clip: Clip, rng: np.random.Generator) -> list[tuple[Question, Question]]:
    """Returns four (sight, sound) pairs of questions about a full clip; each rank of each stream is asked once."""

    def about(kind: Kind, template: str, stream: tuple[Event, ...]) -> list[Question]:
        names = [event.name for event in stream]
        return [
            multiple_choice(rng, kind, template, RANKS[rank], names[rank], [n for n in names if n != names[rank]])
            for rank in rng.permutation(len(RANKS))
        ]

    seen, heard = about("rank_seen", RANK_SEEN, clip.sights), about("rank_heard", RANK_HEARD, clip.sounds)
    return list(zip(seen, heard, strict=True))


def vocabulary_text() -> list[str]:
    """Returns every template with every word that it can contain, to train a tokenizer on."""
    sentences = [SUBTRACT.format(start=start, end=end) for start in NUMBERS for end in NUMBERS]
    for template, asked, names in (
        (SEEN, ("",), COLOURS),
        (HEARD, ("",), SOUNDS),
        (IMAGE, ("",), COLOURS),
        (SOUND, ("",), SOUNDS),
        (WHILE, SOUNDS, COLOURS),
        (NEXT_COLOUR, SOUNDS, COLOURS),
        (NEXT_SOUND, COLOURS, SOUNDS),
        (WHEN_SEEN, COLOURS, NUMBERS),
        (WHEN_HEARD, SOUNDS, NUMBERS),
    ):
        for name, first in itertools.product(asked, range(len(names))):
            options = tuple(names[(first + i) % len(names)] for i in range(4))
            sentences.append(Question("seen", template, name, options, options[0]).text)
    for request, asked, facts in (
        (LIST_COLOURS, COLOURS, NUMBERS),
        (LIST_SOUNDS, SOUNDS, NUMBERS),
        (LIST_WHILE, SOUNDS, (*COLOURS, NOTHING)),
        (LIST_NEXT_COLOUR, SOUNDS, (*COLOURS, NOTHING)),
        (LIST_NEXT_SOUND, COLOURS, (*SOUNDS, NOTHING)),
        (EACH_WHEN, (*COLOURS, *SOUNDS), NUMBERS),
        (EACH_WHILE, SOUNDS, (*COLOURS, NOTHING)),
        (EACH_NEXT_COLOUR, SOUNDS, (*COLOURS, NOTHING)),
        (EACH_NEXT_SOUND, COLOURS, (*SOUNDS, NOTHING)),
    ):
        sentences.append(request.format(names=", ".join(asked)))
        sentences += [" ".join(f"{name} {fact}" for fact in facts) for name in asked]
    return [*sentences, *COLOURS, *SOUNDS, *NUMBERS]


def _shuffled(rng: np.random.Generator, items: Sequence) -> tuple:
    return tuple(items[i] for i in rng.permutation(len(items)))
