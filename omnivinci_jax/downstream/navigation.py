"""Speech-driven navigation (Appendix B.1, Table 10): R2R-CE's episodes, its metrics, and the loop of an agent.

Published files: `SPLIT.json.gz` has `episodes`, each with `episode_id`, `instruction.instruction_text` and more;
`SPLIT_gt.json.gz` has the `actions` of the shortest path of every episode.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from omnivinci_jax.av_world.generate import write_rows
from omnivinci_jax.downstream.actions import STOP, Action, join_steps, parse_action
from omnivinci_jax.downstream.rows import Item, row
from omnivinci_jax.errors import DataError
from omnivinci_jax.speech.spoken import spoken_file
from omnivinci_jax.speech.voice import Voice

HISTORY = 8  # frames before the current one
SUCCESS_METRES, MAX_STEPS = 3.0, 500  # of R2R-CE
Frame = UInt8[np.ndarray, "h w 3"]


def history(step: int) -> list[int]:
    """Returns up to 8 steps before `step`, evenly from the first to the last; all of them if there are fewer."""
    if step <= HISTORY:
        return list(range(step))
    return np.linspace(0, step - 1, HISTORY).round().astype(int).tolist()


def prompt(frames: Sequence[str], instruction: Sequence[Item]) -> list[Item]:
    """Returns the items of a prompt: frames before, the current frame (the last), and the instruction."""
    *before, current = frames
    return [
        ("text", "You are a robot. Frames so far:"),
        *(("image", frame) for frame in before),
        ("text", "Current frame:"),
        ("image", current),
        ("text", "Instruction:"),
        *instruction,
        ("text", "What is your next action: move forward, turn left, turn right or stop?"),
    ]


def convert(episodes: Path, actions: Path, frames: Path, out: Path, voice: Voice | None, say: str) -> dict[str, int]:
    """Writes a question about every action of every episode as OUT/train.jsonl; returns their number.

    Args:
        episodes: `SPLIT.json.gz`.
        actions: `SPLIT_gt.json.gz`.
        frames: folder with EPISODE/STEP.png or .jpg, what the robot sees after so many steps, from 0.
        out: the folder to write.
        voice: speaks the instructions.
        say: `speech`, `text` or `both`: how a prompt gives the instruction.

    Raises:
        DataError: files of another layout, an unknown step, or a missing frame.
        UserError: the voice fails.
    """
    listed, paths = _read(episodes, "episodes"), _read(actions, "")
    rows = []
    for position, episode in enumerate(listed):
        where = f"{episodes}: episode {position}"
        try:
            name, text = str(episode["episode_id"]), episode["instruction"]["instruction_text"].strip()
            steps = paths[name]["actions"]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: {type(error).__name__}: {error}; {actions} must have its actions") from None
        instruction: list[Item] = []
        if say != "text":
            assert voice is not None
            instruction.append(("audio", str(spoken_file(voice, text, out / "speech").relative_to(out))))
        if say != "speech":
            instruction.append(("text", text))
        try:
            joined = join_steps(steps)
        except DataError as error:
            raise DataError(f"{actions}: episode {name}: {error}") from None
        for start, action in joined:
            seen = [_frame(frames / name, step) for step in (*history(start), start)]
            rows.append(row(f"{name}-{start:04d}", prompt(seen, instruction), action.text, action.kind))
    write_rows(out / "train.jsonl", rows)
    return {"train": len(rows)}


def _read(path: Path, key: str) -> Any:
    try:
        content = path.read_bytes()
        value = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        value = value[key] if key else value
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; give a file of R2R-CE") from None
    except (ValueError, EOFError, zlib.error, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a file of R2R-CE: {type(error).__name__}: {error}") from None
    if not isinstance(value, list if key else dict):
        raise DataError(f"{path}: not a file of R2R-CE: its content is a {type(value).__name__}")
    return value


def _frame(folder: Path, step: int) -> str:
    for suffix in ("png", "jpg"):
        if (path := folder / f"{step}.{suffix}").exists():
            return str(path.absolute())
    raise DataError(f"{folder / str(step)}.png: no such file, nor .jpg: render the frame after {step} steps")


@dataclass(frozen=True)
class Score:
    """An episode by R2R-CE's measures: navigation error in metres, oracle success, success, and SPL.

    refused: the answer that was not an action and ended the episode, or "".
    """

    ne: float
    os: float
    sr: float
    spl: float
    refused: str = ""


def score(
    positions: Float[np.ndarray, "steps dimensions"],
    distances: Sequence[float],
    shortest: float,
    stopped: bool,
    refused: str = "",
) -> Score:
    """Scores an episode.

    Success is a stop nearer to the goal than 3 m; oracle success is any position that near. SPL weights success with
    the shortest path's share of the path taken, at most 1.

    Args:
        positions: of the robot, from the start to the end, in metres.
        distances: from each position to the goal, along the shortest path, in metres.
        shortest: that distance at the start, as the episode gives it (`info.geodesic_distance`).
        stopped: whether the robot chose to stop.
        refused: kept in the score.
    """
    taken = float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum())
    success = float(stopped and distances[-1] < SUCCESS_METRES)
    share = shortest / max(shortest, taken) if max(shortest, taken) else 1.0
    return Score(distances[-1], float(min(distances) < SUCCESS_METRES), success, success * share, refused)


def mean_score(scores: Sequence[Score]) -> dict[str, float]:
    """Averages NE in metres, and OS, SR and SPL in percent, as Table 10 does."""
    means = np.mean([(item.ne, item.os, item.sr, item.spl) for item in scores], axis=0)
    return dict(zip(("NE", "OS", "SR", "SPL"), (means * (1, 100, 100, 100)).tolist(), strict=True))


@runtime_checkable
class World(Protocol):
    """A simulator. In Habitat's terms: `reset` and `step` return observations["rgb"] of an Env, `position` is
    sim.get_agent_state().position, and `distance` is get_metrics()["distance_to_goal"].
    """

    def reset(self) -> Frame:
        """Starts the episode; returns what the robot sees."""
        ...

    def step(self, action: int) -> Frame:
        """Takes a step that is not a stop."""
        ...

    @property
    def position(self) -> Float[np.ndarray, " dimensions"]:
        """The robot's position in metres."""
        ...

    @property
    def distance(self) -> float:
        """Length of the shortest path to the goal, in metres."""
        ...


def run_episode(world: World, answer: Callable[[list[Frame]], str], max_steps: int = MAX_STEPS) -> Score:
    """Runs an agent until it stops, its answer is no action, or the steps are used up.

    Args:
        world: the simulator, with its episode.
        answer: the agent: turns up to 8 frames before and the current one into the text of an action.
        max_steps: of the simulator.
    """
    frames = [world.reset()]
    positions, distances = [world.position], [world.distance]
    stopped, refused = False, ""
    while not stopped and not refused and len(frames) <= max_steps:
        current = len(frames) - 1
        text = answer([frames[step] for step in (*history(current), current)])
        try:
            action = parse_action(text)
        except DataError:
            refused = text or "an empty answer"
            action = Action("forward")  # of no steps
        for step in action.steps[: max_steps + 1 - len(frames)]:
            if step == STOP:
                stopped = True
            else:
                frames.append(world.step(step))
                positions.append(world.position)
                distances.append(world.distance)
    return score(np.stack(positions), distances, distances[0], stopped, refused)
