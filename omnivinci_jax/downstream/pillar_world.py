"""A small world for the navigation agent: a room with four coloured pillars, one of which is the goal.

    omnivinci convert-data pillar_world --out runs/pillar_frames

The robot starts anywhere with any heading and takes R2R-CE's steps. A guide shows how: turn left until the pillar is in
view, then towards it, then forward, and stop a metre before it. Its decisions depend on the current frame alone.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from omnivinci_jax.av_world.generate import write_rows
from omnivinci_jax.downstream.actions import FORWARD, LEFT, Action
from omnivinci_jax.downstream.navigation import Frame, history, prompt
from omnivinci_jax.downstream.rows import row

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (235, 205, 40)}
ROOM, PILLAR, SIDE = 12.0, 0.5, 84  # metres of the room and of a pillar's radius; pixels of a frame
_VIEW, _STOP_METRES = math.radians(90), 1.5
_CORNERS = np.array([(0.15, 0.15), (0.15, 0.85), (0.85, 0.15), (0.85, 0.85)]) * ROOM


class PillarWorld:
    """One episode; the seed draws the pillars' corners, the start and the goal. See `World`."""

    def __init__(self, seed: tuple[int, ...] | int):
        rng = np.random.default_rng(seed)
        self.pillars = rng.permutation(_CORNERS) + rng.uniform(-0.6, 0.6, (4, 2))
        self.goal = str(rng.choice(list(COLOURS)))
        self._start = rng.uniform(0.4, 0.6, 2) * ROOM, math.radians(15 * int(rng.integers(24)))
        self.reset()

    @property
    def instruction(self) -> str:
        """The instruction of the episode."""
        return f"go to the {self.goal} pillar"

    @property
    def position(self) -> Float[np.ndarray, "2"]:
        """See `World`."""
        return self._position.copy()

    @property
    def distance(self) -> float:
        """See `World`; the room has nothing to walk around."""
        return float(np.linalg.norm(self._offset(self.goal)))

    def reset(self) -> Frame:
        """See `World`."""
        self._position, self._heading = self._start[0].copy(), self._start[1]
        return self._draw()

    def step(self, action: int) -> Frame:
        """See `World`; walls stop the robot."""
        if action == FORWARD:
            ahead = np.array((math.cos(self._heading), math.sin(self._heading)))
            self._position = np.clip(self._position + 0.25 * ahead, 0.2, ROOM - 0.2)
        else:
            self._heading += math.radians(15 if action == LEFT else -15)
        return self._draw()

    def guide(self) -> Action:
        """Returns the next action on the way to the goal."""
        bearing = math.degrees(self._bearing(self.goal))
        if abs(bearing) > math.degrees(_VIEW) / 2:
            return Action("left", 45)
        if abs(bearing) > 10:
            return Action("left" if bearing > 0 else "right", 15 * min(3, max(1, round(abs(bearing) / 15))))
        return Action("stop") if self.distance < _STOP_METRES else Action("forward", 75)

    def _offset(self, colour: str) -> Float[np.ndarray, "2"]:
        return self.pillars[list(COLOURS).index(colour)] - self._position

    def _bearing(self, colour: str) -> float:
        """The angle from the heading to a pillar, positive to the left, in radians."""
        x, y = self._offset(colour)
        return (math.atan2(y, x) - self._heading + math.pi) % (2 * math.pi) - math.pi

    def _draw(self) -> Frame:
        """Draws the pillars, the near ones over the far ones, between a ceiling and a floor."""
        frame = np.full((SIDE, SIDE, 3), (200, 200, 210), np.uint8)
        frame[SIDE // 2 :] = (90, 80, 70)
        columns = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
        angles = -np.arctan(columns * math.tan(_VIEW / 2))
        for colour in sorted(COLOURS, key=lambda colour: -float(np.linalg.norm(self._offset(colour)))):
            distance = max(float(np.linalg.norm(self._offset(colour))), PILLAR)
            half = math.asin(min(PILLAR / distance, 1.0))
            height = min(SIDE // 2, round(SIDE / 2 * 1.2 / distance))
            seen = np.abs(angles - self._bearing(colour)) < half
            frame[SIDE // 2 - height : SIDE // 2 + height, seen] = COLOURS[colour]
        return frame


def generate(out: Path, train: int, seed: int) -> dict[str, int]:
    """Writes the guide's actions in `train` episodes as train.jsonl; returns the number of rows."""
    rows: list[dict[str, Any]] = []
    (out / "images").mkdir(parents=True, exist_ok=True)
    for index in range(train):
        world = PillarWorld((seed, 0, index))
        frames = [world.reset()]
        while len(frames) < 100:
            action, current = world.guide(), len(frames) - 1
            paths = [f"images/{index:05d}-{step:03d}.png" for step in (*history(current), current)]
            Image.fromarray(frames[-1]).save(out / paths[-1])
            for path, step in zip(paths, history(current), strict=False):
                if not (out / path).exists():
                    Image.fromarray(frames[step]).save(out / path)
            items = prompt(paths, [("text", world.instruction)])
            rows.append(row(f"{index:05d}-{current:03d}", items, action.text, action.kind))
            if action.kind == "stop":
                break
            frames += [world.step(step) for step in action.steps]
    write_rows(out / "train.jsonl", rows)
    return {"train": len(rows)}
