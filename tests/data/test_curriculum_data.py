"""The data of the tiny curriculum: each stage's file has its modalities, and no media file is in two splits."""

import json

import pytest
import soundfile

from omnivinci_jax.av_world.curriculum import write_curriculum
from omnivinci_jax.av_world.extras import can_speak
from omnivinci_jax.av_world.questions import NUMBERS, clip_log
from omnivinci_jax.av_world.timeline import draw_clips

SCALE = 0.005


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("curriculum") / "data"
    write_curriculum(out, seed=5, scale=SCALE)
    return out


def rows(folder, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def sources(rows: list[dict]) -> set[str]:
    """Returns the kinds of rows, by the first part of their ids."""
    return {row["id"].split("-")[0] for row in rows}


def test_each_file_has_its_modalities(folder):
    spoken = {"speech"} if can_speak() else set()
    assert sources(rows(folder, "text")) == {"text", "log", "log_caption"}
    assert sources(rows(folder, "images")) == {"image"}
    assert sources(rows(folder, "sounds")) == {"sound", "soundtrack"} | spoken
    assert sources(rows(folder, "videos")) == {"silent"}
    every = {"image", "text", "log", "log_caption", "sound", "soundtrack", "silent", "train"} | spoken
    assert sources(rows(folder, "omni")) == every
    kinds = {"image", "text", "sound", "sound track", "video", "video with sound"} | spoken
    assert (
        {row["kind"] for row in rows(folder, "omni_val")} == {row["kind"] for row in rows(folder, "held_out")} == kinds
    )


def test_no_media_file_is_in_two_splits(folder):
    def media(name: str) -> set[str]:
        first = (row["messages"][0]["content"][0] for row in rows(folder, name))
        return {part[part["type"]] for part in first if part["type"] != "text"}

    train, val = media("images") | media("sounds") | media("videos") | media("omni"), media("omni_val")
    held_out = media("held_out")
    assert not (train & val or train & held_out or val & held_out)
    assert all((folder / path).is_file() for path in train | val | held_out)


def test_a_question_is_asked_alone_and_can_be_answered(folder):
    for row in rows(folder, "held_out"):
        question, answer = row["messages"]
        assert answer["content"] in question["content"][-1]["text"]


def test_a_clip_log_lists_events_at_their_seconds():
    clip = draw_clips(5, "log", 1)[0]
    logged, second = [], 0
    for word in clip_log(clip).split():
        if word in NUMBERS:
            second = NUMBERS.index(word)
        elif word not in [name for _, name in logged]:
            logged.append((second, word))
    assert sorted(logged) == sorted((event.second, event.name) for event in (*clip.sights, *clip.sounds))


def test_a_sound_track_matches_its_clip(folder):
    first, *_ = (row for row in rows(folder, "sounds") if row["id"] == "soundtrack-000000")
    clip = draw_clips(5, "soundtrack", 1)[0]
    info = soundfile.info(folder / first["messages"][0]["content"][0]["audio"])
    assert abs(info.duration - clip.duration) < 0.1
    assert first["messages"][-1]["content"] == " ".join(
        word for sound in clip.sounds for word in (NUMBERS[int(sound.start)], sound.name)
    )
