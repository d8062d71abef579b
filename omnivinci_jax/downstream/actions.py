"""Actions of a navigating robot as text (Appendix B.1): "move forward 75 cm", "turn left 30 degrees", "stop".

R2R-CE's simulator takes single steps: 0 stops, 1 moves forward 25 cm, 2 and 3 turn left and right by 15 degrees. A text
joins up to three equal ones.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from omnivinci_jax.errors import DataError

STOP, FORWARD, LEFT, RIGHT = range(4)
_STEPS = {"forward": (FORWARD, 25), "left": (LEFT, 15), "right": (RIGHT, 15)}
_LONGEST = 3
_TEXT = re.compile(r"(?:move (forward) (\d+) cm|turn (left|right) (\d+) degrees?|(stop))\.?", re.IGNORECASE | re.ASCII)


class Action(NamedTuple):
    """An action: forward, left, right or stop; the amount is in centimetres or degrees, 0 for stop."""

    kind: str
    amount: int = 0

    @property
    def text(self) -> str:
        """The text that a model reads and writes."""
        if self.kind == "stop":
            return "stop"
        return f"move forward {self.amount} cm" if self.kind == "forward" else f"turn {self.kind} {self.amount} degrees"

    @property
    def steps(self) -> list[int]:
        """The simulator's steps."""
        if self.kind == "stop":
            return [STOP]
        step, size = _STEPS[self.kind]
        return [step] * (self.amount // size)


def parse_action(text: str) -> Action:
    """Parses the whole of a text as one action; raises DataError for anything else, or another amount."""
    found = _TEXT.fullmatch(text.strip())
    if not found:
        raise DataError(
            f"{text!r} is not an action: move forward N cm, turn left N degrees, turn right N degrees, stop"
        )
    if found[5]:
        return Action("stop")
    kind, amount = ("forward", int(found[2])) if found[1] else (found[3].lower(), int(found[4]))
    size = _STEPS[kind][1]
    if amount not in (allowed := [size * count for count in range(1, _LONGEST + 1)]):
        raise DataError(f"{text!r}: the amount of a step must be one of {', '.join(map(str, allowed))}")
    return Action(kind, amount)


def join_steps(steps: Sequence[int]) -> list[tuple[int, Action]]:
    """Joins equal steps; returns each action with the index of its first step. Raises DataError for other numbers."""
    names = {step: (kind, size) for kind, (step, size) in _STEPS.items()}
    actions, start = [], 0
    for step, run in groupby(steps):
        count = len(list(run))
        if step == STOP:
            actions.append((start, Action("stop")))
        elif step in names:
            kind, size = names[step]
            for first in range(0, count, _LONGEST):
                actions.append((start + first, Action(kind, size * min(_LONGEST, count - first))))
        else:
            raise DataError(f"step {step!r} is none of 0 (stop), 1 (forward), 2 (left), 3 (right)")
        start += count
    return actions
