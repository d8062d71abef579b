"""Navigation: actions, R2R-CE's files and measures on hand-worked paths, the agent's loop, and the small world."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from omnivinci_jax.cli import main
from omnivinci_jax.downstream.actions import FORWARD, LEFT, RIGHT, STOP, Action, join_steps, parse_action
from omnivinci_jax.downstream.navigation import history, mean_score, run_episode, score
from omnivinci_jax.downstream.pillar_world import COLOURS, SIDE, PillarWorld
from omnivinci_jax.errors import DataError

ACTIONS = [Action("forward", n) for n in (25, 50, 75)] + [
    Action(side, n) for side in ("left", "right") for n in (15, 45)
]


@pytest.mark.parametrize("action", [*ACTIONS, Action("stop")])
def test_an_actions_text_is_read_back(action):
    assert parse_action(action.text) == action
    assert parse_action(f" {action.text.capitalize()}. ") == action


def test_actions_are_single_steps_of_25_cm_and_15_degrees():
    assert Action("forward", 75).text == "move forward 75 cm" and Action("forward", 75).steps == [FORWARD] * 3
    assert Action("left", 30).text == "turn left 30 degrees" and Action("left", 30).steps == [LEFT] * 2
    assert Action("right", 15).steps == [RIGHT] and Action("stop").steps == [STOP]


@pytest.mark.parametrize(
    "text",
    [
        "", "forward", "move forward", "move forward 80 cm", "move forward 100 cm", "move forward -25 cm",
        "move forward 25 m", "turn left 90 degrees", "turn left 0 degrees", "turn around 30 degrees", "don't stop",
        "stop stop", "turn left 30 degrees, then stop", "move forward 2.5 cm", "move forward ٢٥ cm",
    ],
)  # fmt: skip
def test_nonsense_is_no_action(text):
    with pytest.raises(DataError):
        parse_action(text)


def test_equal_steps_are_joined_up_to_three():
    assert join_steps([1, 1, 1, 1, 2, 2, 3, 0]) == [
        (0, Action("forward", 75)),
        (3, Action("forward", 25)),
        (4, Action("left", 30)),
        (6, Action("right", 15)),
        (7, Action("stop")),
    ]
    with pytest.raises(DataError, match="step 7 is none of 0"):
        join_steps([1, 7])


def test_history_is_eight_frames_from_the_first_to_the_last():
    assert history(0) == [] and history(3) == [0, 1, 2] and history(8) == list(range(8))
    assert history(15) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_measures_of_hand_worked_paths():
    """The goal is at (0, 10), and the shortest path is 10 m."""

    def scored(*points: tuple[float, float], stopped: bool = True):
        positions = np.array(points, float)
        distances = np.linalg.norm(positions - (0, 10), axis=1).tolist()
        return score(positions, distances, 10.0, stopped)

    straight = scored((0, 0), (0, 5), (0, 8))
    assert (straight.ne, straight.os, straight.sr, straight.spl) == (2.0, 1.0, 1.0, 1.0)  # 8 m counts as 10 m
    detour = scored((0, 0), (6, 0), (6, 8), (0, 8))  # 20 m
    assert (detour.ne, detour.sr, detour.spl) == (2.0, 1.0, 0.5)
    passed = scored((0, 0), (0, 10), (0, 4))
    assert (passed.ne, passed.os, passed.sr, passed.spl) == (6.0, 1.0, 0.0, 0.0)
    silent = scored((0, 0), (0, 8), stopped=False)
    assert (silent.ne, silent.os, silent.sr, silent.spl) == (2.0, 1.0, 0.0, 0.0)
    border = scored((0, 0), (0, 7))
    assert (border.ne, border.os, border.sr) == (3.0, 0.0, 0.0)  # nearer than 3 m, not at 3 m
    assert mean_score([straight, detour, passed, silent]) == {"NE": 3.0, "OS": 100.0, "SR": 50.0, "SPL": 37.5}


class Line:
    """A world of one line: forward is 25 cm towards the goal, 4 m away. A frame is the number of steps."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.taken, self.position, self.distance = 0, np.zeros(1), 4.0
        return self._frame()

    def step(self, action: int):
        self.taken += 1
        if action == FORWARD:
            self.position, self.distance = self.position + 0.25, self.distance - 0.25
        return self._frame()

    def _frame(self):
        return np.full((1, 1, 3), self.taken, np.uint8)


def test_the_loop_gives_eight_frames_before_and_ends_on_stop_nonsense_or_the_last_step():
    seen = []

    def agent(frames):
        seen.append([int(frame[0, 0, 0]) for frame in frames])
        return "move forward 75 cm" if len(seen) < 6 else "stop"

    result = run_episode(Line(), agent)
    assert seen[:3] == [[0], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]]
    assert seen[5] == [*np.linspace(0, 14, 8).astype(int).tolist(), 15]
    assert (result.ne, result.sr, result.spl, result.refused) == (0.25, 1.0, 1.0, "")
    lost = run_episode(Line(), lambda frames: "fly")
    assert (lost.ne, lost.sr, lost.refused) == (4.0, 0.0, "fly")
    assert run_episode(Line(), lambda frames: "").refused == "an empty answer"
    tired = run_episode(Line(), lambda frames: "move forward 75 cm", max_steps=5)
    assert (tired.ne, tired.sr, tired.os) == (2.75, 0.0, 1.0)


def test_the_guide_succeeds_and_frames_show_the_pillars():
    worlds = [PillarWorld((5, index)) for index in range(20)]
    assert mean_score([run_episode(world, lambda _, w=world: w.guide().text) for world in worlds])["SR"] == 100
    world = worlds[0]
    world.reset()
    while world.guide().kind != "forward":
        frame = [world.step(step) for step in world.guide().steps][-1]
    middle = frame[SIDE // 2, SIDE // 3 : 2 * SIDE // 3].tolist()
    assert list(COLOURS[world.goal]) in middle
    before, walls = world.distance, PillarWorld(0)
    world.step(FORWARD)
    assert world.distance == pytest.approx(before - 0.25, abs=0.02)
    for _ in range(100):
        walls.step(FORWARD)
    assert walls.position.min() >= 0.2 and walls.position.max() <= 11.8


def test_a_guides_actions_become_conversations(tmp_path):
    assert main(["convert-data", "pillar_world", "--episodes=2", f"--out={tmp_path}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    content = rows[0]["messages"][0]["content"]
    assert [item["type"] for item in content] == ["text", "text", "image", "text", "text", "text"]
    images = [[item["image"] for item in row["messages"][0]["content"] if "image" in item] for row in rows]
    assert max(map(len, images)) == 9
    assert all((tmp_path / path).exists() for paths in images for path in paths)
    assert rows[-1]["messages"][1]["content"] == "stop"


@pytest.fixture
def r2r(tmp_path):
    """An episode in R2R-CE's layout with frames."""
    episode = {"episode_id": 7, "instruction": {"instruction_text": " Walk to the sofa. ", "instruction_tokens": [3]}}
    frames = tmp_path / "frames" / "7"
    frames.mkdir(parents=True)
    for step in range(5):
        Image.new("RGB", (4, 4)).save(frames / f"{step}.{'png' if step % 2 else 'jpg'}")

    def write(steps, episode=episode):
        episodes, actions = tmp_path / "val.json.gz", tmp_path / "val_gt.json.gz"
        episodes.write_bytes(gzip.compress(json.dumps({"episodes": [episode]}).encode()))
        actions.write_bytes(gzip.compress(json.dumps({"7": {"actions": steps}}).encode()))
        return ["convert-data", "r2r_ce", str(episodes), str(actions), f"--frames={frames.parent}", f"--out={tmp_path}"]

    return write


def test_an_episode_becomes_a_question_about_each_action(r2r, tmp_path):
    assert main([*r2r([1, 1, 1, 2, 0]), "--instruction=text"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [row["messages"][1]["content"] for row in rows] == ["move forward 75 cm", "turn left 15 degrees", "stop"]
    content = rows[1]["messages"][0]["content"]
    assert [item["image"].rsplit("/")[-1] for item in content if "image" in item] == [
        "0.jpg",
        "1.png",
        "2.jpg",
        "3.png",
    ]
    assert content[-2] == {"type": "text", "text": "Walk to the sofa."}


def test_an_instruction_is_spoken(r2r, tmp_path, monkeypatch):
    from omnivinci_jax.speech import backends
    from omnivinci_jax.speech.voice import Sound

    class Hum:
        def __init__(self, config):
            self.config = config

        def say(self, text):
            return Sound(np.full(len(text), 0.5, np.float32), 16000)

    monkeypatch.setitem(backends.BACKENDS, "espeak-ng", Hum)
    assert main([*r2r([0]), "--instruction=both"]) == 0
    content = json.loads((tmp_path / "train.jsonl").read_text())["messages"][0]["content"]
    assert content[-2] == {"type": "text", "text": "Walk to the sofa."}
    assert (tmp_path / content[-3]["audio"]).stat().st_size > 17 * 4


def test_other_episodes_are_refused_in_one_line(r2r, tmp_path, capsys):
    def refused(arguments) -> str:
        assert main([*arguments, "--instruction=text"]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "val_gt.json.gz: episode 7: step 9 is none of 0" in refused(r2r([9]))
    assert "7/5.png: no such file, nor .jpg" in refused(r2r([1, 1, 1, 1, 1, 0]))
    assert "val.json.gz: episode 0: KeyError: 'instruction'" in refused(r2r([0], {"episode_id": 7}))
    assert "val.json.gz: episode 0: KeyError: '8'" in refused(
        r2r([0], {"episode_id": 8, "instruction": {"instruction_text": "Go."}})
    )
    arguments = r2r([0])
    (tmp_path / "val.json.gz").write_bytes(b"\x1f\x8bx")
    assert "val.json.gz: not a file of R2R-CE" in refused(arguments)
    (tmp_path / "val.json.gz").write_text("[]")
    assert "val.json.gz: not a file of R2R-CE" in refused(arguments)
    (tmp_path / "val.json.gz").unlink()
    assert "val.json.gz: cannot be read: No such file" in refused(arguments)
