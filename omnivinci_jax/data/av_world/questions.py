"""Questions, captions and conversations about a clip, and every sentence that they can hold.

Five kinds of multiple choice. `seen`, `heard` and `when` need one stream; `while` and `order` need both, in time, and
are balanced (see `timeline`). `order` asks for the next event of the other stream, since a literal "did red or the beep
come first" cannot be balanced: the sight would have to be early under one answer and late under the other, so its time
alone would tell. A clip is asked one form of it, the one that its streams were drawn for.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .timeline import COLOURS, LONGEST, SOUNDS, Clip, inside, next_after, spans

Kind = Literal["seen", "heard", "while", "order", "when"]
KINDS: tuple[Kind, ...] = ("seen", "heard", "while", "order", "when")
JOINT_KINDS: tuple[Kind, ...] = ("while", "order")

SEEN = "Which colour was seen? {options}."
HEARD = "Which sound was heard? {options}."
WHILE = "Which colour was on screen while the {asked} sounded? {options}."
NEXT_COLOUR = "After the {asked} began, which colour came first? {options}."
NEXT_SOUND = "After {asked} appeared, which sound came first? {options}."
WHEN_SEEN = "At what second did {asked} appear? {options}."
WHEN_HEARD = "At what second did the {asked} sound? {options}."
LIST_COLOURS = "List the colours by second."
LIST_SOUNDS = "List the sounds by second."
LIST_EVENTS = "List all events by second."
LIST_PAIRS = "List each sound with its colour."
NO_COLOUR = "none"
IMAGE = "Which colour is the shape? {options}."
SOUND = "Which sound is it? {options}."
SUBTRACT = "How many seconds from {start} to {end}?"


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
        """The question as it is put."""
        return self.template.format(asked=self.asked, options=f"{', '.join(self.options[:3])} or {self.options[3]}")


def multiple_choice(
    rng: np.random.Generator, kind: Kind, template: str, asked: str, answer: str, others: Iterable[str]
) -> Question:
    """The answer and three others in random order."""
    return Question(kind, template, asked, _shuffled(rng, [answer, *others]), answer)


def name_question(
    rng: np.random.Generator, kind: Kind, template: str, answer: str, present: Iterable[str], names: Sequence[str]
) -> Question:
    """Asks which of four names is present: the answer and three names that are not."""
    absent = [name for name in names if name not in present]
    return multiple_choice(rng, kind, template, "", answer, _shuffled(rng, absent)[:3])


def all_questions(clip: Clip, rng: np.random.Generator) -> dict[Kind, Sequence[Question]]:
    """Every question that the clip can be asked, by kind, in random order.

    The first of each joint kind is the balanced one: the rank of its answer was drawn before the clip.
    """
    colours, sounds = ([event.name for event in stream] for stream in (clip.sights, clip.sounds))
    sight_spans, sound_spans = spans(clip.sights), spans(clip.sounds)

    def about_ranks(
        kind: Kind, template: str, holds: np.ndarray, names: list[str], asked: list[str], rank: int
    ) -> list[Question]:
        pairs = sorted(rng.permutation(np.argwhere(holds)), key=lambda pair: pair[0] != rank)
        return [
            multiple_choice(rng, kind, template, asked[j], names[i], [n for n in names if n != names[i]])
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
            str(event.second),
            [str(second) for second in clip.when[event.name] if second != event.second],
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
    """One question of every kind, for evaluation; each is to be asked by itself."""
    return [questions[0] for questions in all_questions(clip, clip.rng("questions")).values()]


Turn = tuple[str, str]


def caption_turns(clip: Clip) -> list[Turn]:
    """Dense captions, of one stream and of both (the paper's omni captions, Section 3.2).

    The colour on screen in the middle of each second; the second each sound starts in; both streams' events as they
    start; the colour on screen at the middle of each sound.
    """
    shown = [
        f"{second} {event.name}"
        for second, event in itertools.product(range(int(LONGEST)), clip.sights)
        if event.start <= second + 0.5 < event.end
    ]
    events = sorted((*clip.sights, *clip.sounds), key=lambda event: event.start)
    pairs = [
        f"{sound.name} {next((sight.name for sight in clip.sights if sight.start <= middle < sight.end), NO_COLOUR)}"
        for sound in clip.sounds
        for middle in ((sound.start + sound.end) / 2,)
    ]
    return [
        (LIST_COLOURS, " ".join(shown)),
        (LIST_SOUNDS, " ".join(f"{event.second} {event.name}" for event in clip.sounds)),
        (LIST_EVENTS, " ".join(f"{event.second} {event.name}" for event in events)),
        (LIST_PAIRS, " ".join(pairs)),
    ]


def training_conversations(clip: Clip, repeats: int = 2) -> list[list[Turn]]:
    """Conversations about the clip: each caption `repeats` times, every time after another question.

    A conversation is one question and one caption. With more turns, most answers could be read off the earlier ones,
    and little would be learnt from the clip.
    """
    rng = clip.rng("questions")
    supply = {kind: itertools.cycle(candidates) for kind, candidates in all_questions(clip, rng).items()}
    kinds: list[Kind] = list(_shuffled(rng, ["while", "while", "order", "order", "when", "when", "seen", "heard"]))
    conversations = []
    for caption, kind in zip(caption_turns(clip) * repeats, itertools.cycle(kinds)):
        question = next(supply[kind])
        # The order of the options is new each time: the supply repeats where a clip has few questions of a kind.
        question = replace(question, options=_shuffled(rng, question.options))
        conversations.append([(question.text, question.answer), caption])
    return conversations


def vocabulary_text() -> list[str]:
    """Every sentence form with every word that it can hold: the text to train a tokenizer on."""
    seconds = [str(second) for second in range(int(LONGEST) + 1)]
    sentences = [SUBTRACT.format(start=start, end=end) for start in seconds for end in seconds]
    for template, asked, names in (
        (SEEN, ("",), COLOURS),
        (HEARD, ("",), SOUNDS),
        (IMAGE, ("",), COLOURS),
        (SOUND, ("",), SOUNDS),
        (WHILE, SOUNDS, COLOURS),
        (NEXT_COLOUR, SOUNDS, COLOURS),
        (NEXT_SOUND, COLOURS, SOUNDS),
        (WHEN_SEEN, COLOURS, seconds),
        (WHEN_HEARD, SOUNDS, seconds),
    ):
        for name, first in itertools.product(asked, range(len(names))):
            options = tuple(names[(first + i) % len(names)] for i in range(4))
            sentences.append(Question("seen", template, name, options, options[0]).text)
    for caption, names in ((LIST_COLOURS, COLOURS), (LIST_SOUNDS, SOUNDS), (LIST_EVENTS, COLOURS + SOUNDS)):
        sentences += [caption, *(" ".join(f"{second} {name}" for second in seconds) for name in names)]
    sentences += [LIST_PAIRS, *(f"{sound} {colour}" for sound in SOUNDS for colour in (*COLOURS, NO_COLOUR))]
    return [*sentences, *COLOURS, *SOUNDS, *seconds]


def _shuffled(rng: np.random.Generator, items: Sequence) -> tuple:
    return tuple(items[i] for i in rng.permutation(len(items)))
