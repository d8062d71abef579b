"""The embedded data set: true answers, no shortcuts, and reproducible files."""

import json
import re
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from omnivinci_jax.av_world import audit as auditing
from omnivinci_jax.av_world.audit import audit, markdown
from omnivinci_jax.av_world.extras import write_extra
from omnivinci_jax.av_world.generate import generate
from omnivinci_jax.av_world.questions import (
    JOINT_KINDS,
    KINDS,
    NUMBERS,
    RANKS,
    all_questions,
    caption_turns,
    lookup_turns,
    one_of_each,
    rank_questions,
    training_conversations,
    vocabulary_text,
)
from omnivinci_jax.av_world.reasoning import question_rows, supervised_rows
from omnivinci_jax.av_world.render import RGB
from omnivinci_jax.av_world.timeline import BASE, COLOURS, LONGEST, SOUNDS, Clip, Event, draw_clips
from omnivinci_jax.data.questions import read_question
from omnivinci_jax.errors import ConfigError, DataError

COUNTS = {"train_clips": 1, "val_clips": 1, "held_out_clips": 1}


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return draw_clips(7, "held_out", 512)


@pytest.fixture(scope="module")
def many_clips() -> tuple[list[Clip], list[Clip]]:
    return draw_clips(3, "val", 2048), draw_clips(3, "held_out", 2048)


def event_named(clip: Clip, name: str) -> Event:
    return next(event for event in (*clip.sights, *clip.sounds) if event.name == name)


# Timelines


def test_paired_clips_have_the_sounds_of_their_colours():
    ordered = 0
    for clip in draw_clips(7, "val", 512, paired=True):
        colours, sounds = [COLOURS.index(e.name) for e in clip.sights], [SOUNDS.index(e.name) for e in clip.sounds]
        assert sorted(colours) == sorted(sounds)
        ordered += colours == sounds
    assert 0 < ordered < 50  # 1 of 24 by chance


def test_a_clip_depends_only_on_its_seed_split_and_number(clips):
    assert draw_clips(7, "held_out", 3) == clips[:3]
    assert draw_clips(8, "held_out", 1) != clips[:1]
    assert draw_clips(7, "val", 1)[0].sights != clips[0].sights


def test_every_timeline_is_well_formed(clips):
    for clip in clips:
        assert BASE <= clip.duration <= LONGEST
        assert all(side % 2 == 0 for side in clip.size)
        for stream in (clip.sights, clip.sounds):
            assert len({event.name for event in stream}) == 4
            times = [time for event in stream for time in (event.start, event.end)]
            assert times == sorted(times)
            assert times[0] > 0
            assert times[-1] < clip.duration
        assert all(event.end - event.start > 0.999 for event in clip.sights)
        assert all(0.499 < event.end - event.start <= 1.0 for event in clip.sounds)
    assert {clip.container for clip in clips} == {"mp4", "webm"}
    assert 0.1 < np.mean([clip.container == "webm" for clip in clips]) < 0.2
    assert any(clip.size[0] > clip.size[1] for clip in clips)
    assert any(clip.size[0] < clip.size[1] for clip in clips)


def test_half_of_the_training_clips_have_fewer_events():
    clips = draw_clips(7, "train", 512)
    assert Counter(len(clip.sights) for clip in clips) == {1: 128, 2: 128, 4: 256}
    for clip in clips:
        assert len(clip.sounds) == len(clip.sights)
        assert clip.is_full == (len(clip.sights) == 4)
        assert set(clip.when) <= {event.name for event in (*clip.sights, *clip.sounds)}
        for stream in (clip.sights, clip.sounds):
            assert list(stream) == sorted(stream, key=lambda event: event.start)


# Questions


def true_answer(clip: Clip, kind: str, asked: str, options: tuple[str, ...]) -> str:
    """Derives the answer, in the question's words, from the timeline independently of the package."""
    if kind in ("seen", "heard"):
        present = {event.name for event in (clip.sights if kind == "seen" else clip.sounds)}
        (answer,) = present & set(options)
        return answer
    event = event_named(clip, asked)
    if kind == "when":
        assert 0.2 <= event.start % 1 <= 0.8
        return NUMBERS[int(event.start)]
    if kind == "while":
        (sight,) = [s for s in clip.sights if s.start < event.end and event.start < s.end]
        assert sight.start < event.start < event.end < sight.end
        return sight.name
    leading = clip.sounds if event in clip.sights else clip.sights
    assert all(abs(other.start - event.start) >= 0.5 - 1e-9 for other in leading if other.start > event.start - 0.5)
    return min((other for other in leading if other.start > event.start), key=lambda other: other.start).name


def test_every_question_has_one_true_answer(clips):
    for clip in clips + draw_clips(7, "train", 64):
        for kind, questions in all_questions(clip, np.random.default_rng(clip.number)).items():
            assert questions or not clip.is_full, f"clip {clip.number} has no {kind} question"
            for question in questions:
                assert len(set(question.options)) == 4
                assert question.answer == true_answer(clip, kind, question.asked, question.options)
                assert f", {', '.join(question.options[:3])} or {question.options[3]}, " in question.text
                assert 8 <= len(question.text.split()) <= 20


def test_the_first_joint_questions_have_the_drawn_ranks(clips):
    for clip in clips:
        questions = {question.kind: question for question in one_of_each(clip)}
        assert [questions[kind].kind for kind in KINDS] == list(KINDS)
        assert clip.sights[clip.while_rank].name == questions["while"].answer
        leading = clip.sights if clip.lead == "colour" else clip.sounds
        assert leading[clip.order_rank].name == questions["order"].answer


def pairs(text: str) -> list[tuple[str, str]]:
    return list(zip(text.split()[::2], text.split()[1::2], strict=True))


def test_captions_and_lookups_are_true(clips):
    for clip in clips[:100] + draw_clips(7, "train", 100):
        events = {event.name: event for event in (*clip.sights, *clip.sounds)}
        captions, lookups = caption_turns(clip), lookup_turns(clip, np.random.default_rng(clip.number))
        for kind, stream in (("seen", clip.sights), ("heard", clip.sounds)):
            assert pairs(captions[kind][1]) == [(NUMBERS[int(event.start)], event.name) for event in stream]
        for name, second in pairs(lookups["when"][1]):
            assert second == NUMBERS[int(events[name].start)]
        for name, colour in pairs(captions["while"][1]):
            middle = (events[name].start + events[name].end) / 2
            on_screen = [sight.name for sight in clip.sights if sight.start <= middle < sight.end]
            assert [colour] == (on_screen or ["none"])
        for name, following in pairs(captions["order"][1]):
            others = clip.sounds if events[name] in clip.sights else clip.sights
            assert [following] == ([e.name for e in others if e.start > events[name].start] or ["none"])[:1]
        for kind in ("while", "order"):
            assert sorted(pairs(lookups[kind][1])) == sorted(pairs(captions[kind][1]))
        for request, answer in lookups.values():
            assert re.findall(r"\w+", request)[-len(pairs(answer)) :] == [name for name, _ in pairs(answer)]


def test_no_earlier_turn_of_a_training_conversation_reveals_an_answer(clips):
    for clip in clips[:50] + draw_clips(7, "train", 50):
        conversations = training_conversations(clip)
        assert conversations == training_conversations(clip)
        assert len(conversations) == 8 or not clip.is_full
        for turns in conversations:
            stems = [re.sub(r", .* or \w+,", "", request) for request, _ in turns]
            assert len(set(stems)) == len(stems)
            earlier = ""
            for request, answer in turns:
                if request.endswith(("seen?", "heard?")):
                    assert answer not in earlier
                earlier += request
            captions_and_lookups = [stem.startswith(("List", "Name")) for stem in stems]
            assert all(captions_and_lookups) or not any(captions_and_lookups)


def test_rank_questions_ask_every_rank_of_both_streams_once(clips):
    for clip in clips[:64]:
        pairs = rank_questions(clip, clip.rng("questions"))
        for stream, questions in zip((clip.sights, clip.sounds), zip(*pairs, strict=True), strict=True):
            assert {question.asked for question in questions} == set(RANKS)
            for question in questions:
                assert question.answer == stream[RANKS.index(question.asked)].name
                assert set(question.options) == {event.name for event in stream}
                assert question.text.endswith(f" {question.asked}?")


def test_reasoning_lists_what_is_seen_or_heard_in_half_of_the_answers(clips):
    formatted = [0, 0]
    for clip in clips:
        for row in supervised_rows(clip):
            kinds = set()
            for asked, answered in zip(row["messages"][::2], row["messages"][1::2], strict=True):
                text, answer = asked["content"][-1]["text"], answered["content"]
                kinds.add(text.split()[1])
                events = clip.sights if "colour" in text else clip.sounds
                formatted[answer.startswith("<think>")] += 1
                if found := re.fullmatch(r"<think>(.*)</think><answer>(.*)</answer>", answer):
                    assert found[1].split() == [event.name for event in events]
                    answer = found[2]
                assert answer in [event.name for event in events]
            assert kinds == {"colour,", "sound,"}
    assert 0.45 < formatted[1] / sum(formatted) < 0.55
    rows = question_rows(clips[0], 1)
    assert [row["kind"] for row in rows] == ["seen", "heard"]
    for row in map(json.loads, map(json.dumps, rows)):
        assert read_question(row, "x").answer in row["options"] and row["messages"][-1]["role"] == "user"


def test_the_vocabulary_has_every_word(clips, tmp_path):
    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+|[^\w\s]", text))

    known = set().union(*map(words, vocabulary_text()))
    turns = [turn for clip in clips[:100] for turns in training_conversations(clip) for turn in turns]
    turns += [(question.text, question.answer) for clip in clips[:100] for question in one_of_each(clip)]
    assert set().union(*(words(text) for turn in turns for text in turn)) <= known
    messages = write_extra(tmp_path, 0, 3)["messages"]
    assert words(messages[0]["content"][0]["text"]) | words(messages[1]["content"]) <= known


# No shortcuts


def test_joint_questions_cannot_be_answered_blind(many_clips):
    results = audit(*many_clips)
    for result in results:
        if result.kind in JOINT_KINDS or (result.kind == "when" and result.sense == "text"):
            for accuracy in (result.best_rule, result.linear_scorer):
                assert abs(accuracy - 0.25) < 3 * result.standard_error, result
    can_see = {(result.kind, result.sense): result.linear_scorer for result in results}
    assert can_see["seen", "vision"] == can_see["heard", "sound"] == 1
    assert markdown(results).count("\n") == 1 + len(KINDS)


def test_ranks_are_uniform_for_every_stream(many_clips):
    clips = [clip for half in many_clips for clip in half]
    for ranks, streams in (
        ([clip.while_rank for clip in clips], [clip.sights for clip in clips]),
        (
            [clip.order_rank for clip in clips],
            [clip.sights if clip.lead == "colour" else clip.sounds for clip in clips],
        ),
    ):
        lengths = np.array([[event.end - event.start for event in stream] for stream in streams])
        starts = np.array([[event.start for event in stream] for stream in streams])
        # The answer is the longest, or the earliest compared with other clips, no more often than any other event.
        for rank_of_answer in (lengths.argsort(axis=1).argsort(axis=1), starts.argsort(axis=0).argsort(axis=0)):
            values = rank_of_answer[np.arange(len(ranks)), ranks]
            quarters = np.bincount(values * 4 // (rank_of_answer.max() + 1), minlength=4) / len(ranks)
            assert abs(quarters - 0.25).max() < 3.5 * np.sqrt(0.25 * 0.75 / len(ranks))
        assert all(abs(n / len(ranks) - 0.25) < 0.025 for n in Counter(ranks).values())


def test_the_audit_finds_a_shortcut(many_clips, monkeypatch):
    def unbalanced(clip: Clip):
        found = all_questions(clip, clip.rng("questions"))
        return [found[kind][-1 if kind == "while" else 0] for kind in KINDS]

    monkeypatch.setattr(auditing, "one_of_each", unbalanced)
    results = {(result.kind, result.sense): result for result in audit(*(half[:1024] for half in many_clips))}
    blind, seeing = results["while", "text"], results["while", "vision"]
    assert abs(blind.linear_scorer - 0.25) < 3 * blind.standard_error
    assert seeing.linear_scorer > 0.25 + 4 * seeing.standard_error


# Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("av_world") / "data"
    generate(out, 19, **COUNTS, workers=2)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_files_are_reproducible_and_an_interrupted_run_is_completed(folder, tmp_path):
    written = contents(folder)
    assert not any(name.endswith(".part") for name in written)
    other = tmp_path / "other"
    (other / "clips").mkdir(parents=True)
    kept, *_, broken = sorted(name for name in written if name.startswith("clips/"))
    (other / kept).write_bytes(b"kept as it is")
    (other / "clips" / f".{Path(broken).name}.host-1.part").write_bytes(b"half of it")
    arguments = json.loads(written["av_world.json"]) | {"finished": False}
    (other / "av_world.json").write_text(json.dumps(arguments))
    generate(other, 19, **COUNTS, workers=1)
    assert contents(other) == written | {kept: b"kept as it is"}


def test_a_finished_folder_is_not_changed_and_other_arguments_raise_errors(folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    generate(folder, 19, **COUNTS)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(DataError, match=r"av_world\.json: made with .*give another folder"):
        generate(folder, 20, **COUNTS)
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        generate(tmp_path / "new", 19, workers=0)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty and not an av_world data set"):
        generate(tmp_path, 19, **COUNTS)


def test_a_rank_data_set_has_only_rank_questions(tmp_path):
    generate(tmp_path / "rank", 19, train_clips=6, val_clips=1, held_out_clips=1, workers=1, asking="rank")
    full = [clip for clip in draw_clips(19, "train", 6) if clip.is_full]
    rows = [json.loads(line) for line in (tmp_path / "rank" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * len(full) > 0 and not list((tmp_path / "rank" / "images").iterdir())
    held_out = [json.loads(line) for line in (tmp_path / "rank" / "held_out.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in held_out] == ["rank_seen", "rank_heard"]
    with pytest.raises(DataError, match="made with"):
        generate(tmp_path / "rank", 19, train_clips=6, val_clips=1, held_out_clips=1)


def test_rows_have_the_documented_form(folder):
    held_out = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in held_out] == list(KINDS)
    for row in held_out:
        user, assistant = row["messages"]
        video, text = user["content"]
        assert video["type"] == "video"
        assert (folder / video["video"]).exists()
        assert all(option in text["text"] for option in row["options"])
        assert assistant["content"] in row["options"]
    train = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len(train) == len(training_conversations(draw_clips(19, "train", 1)[0]))
    assert len({row["id"] for row in train + held_out}) == len(train + held_out)
    for row in train:
        assert set(row) == {"id", "messages"}
        media = [part for turn in row["messages"][::2] for part in turn["content"] if part["type"] != "text"]
        assert media == [{"type": "video", "video": row["messages"][0]["content"][0]["video"]}]


def test_events_are_seen_and_heard_as_the_timeline_says(folder):
    truth = [json.loads(line) for line in (folder / "timelines.jsonl").read_text().splitlines()]
    assert len(truth) == 3
    for clip in truth:
        with av.open(folder / clip["file"]) as container:
            frames = list(container.decode(video=0))
        small = np.stack([f.to_image().resize((28, 28), Image.Resampling.BILINEAR) for f in frames]).astype(int)
        times = np.array([frame.time for frame in frames])
        assert abs(len(frames) / 12 - clip["duration"]) < 0.1
        colours = np.array(list(RGB.values()))
        for sight in clip["sights"]:
            at_middle = small[abs(times - (sight["start"] + sight["end"]) / 2).argmin()].reshape(-1, 3)
            brightest = at_middle[at_middle.max(axis=1).argsort()[-30:]].mean(axis=0)
            assert list(RGB)[abs(colours - brightest).sum(axis=1).argmin()] == sight["name"]
        with av.open(folder / clip["file"]) as container:
            resampler = av.AudioResampler("flt", "mono", 16_000)
            blocks = [b.to_ndarray()[0] for f in container.decode(audio=0) for b in resampler.resample(f)]
        wave = np.concatenate(blocks)
        assert abs(len(wave) / 16_000 - clip["duration"]) < 0.2
        time = np.arange(len(wave)) / 16_000
        quiet = np.ones(len(wave), bool)
        for sound in clip["sounds"]:
            quiet &= (time < sound["start"] - 0.05) | (time > sound["end"] + 0.05)
        for sound in clip["sounds"]:
            heard = wave[(time > sound["start"]) & (time < sound["end"])]
            assert heard.std() > 3 * wave[quiet].std()


def test_extra_rows_cover_the_other_modalities(tmp_path):
    for name in ("images", "sounds", "clips"):
        (tmp_path / name).mkdir()
    rows = [write_extra(tmp_path, 0, number) for number in (0, 1, 2, 3, 5, 9, 13)]
    kinds = [row["messages"][0]["content"][0]["type"] for row in rows]
    assert kinds == ["image", "audio", "video", "text", "audio", "audio", "audio"]
    with Image.open(tmp_path / "images" / "000000.png") as picture:
        assert picture.mode == "RGB"
    with av.open(tmp_path / rows[2]["messages"][0]["content"][0]["video"]) as container:
        assert not container.streams.audio
    files = [tmp_path / rows[i]["messages"][0]["content"][0]["audio"] for i in (1, 4, 5, 6)]
    assert [path.suffix for path in files] == [".wav", ".flac", ".ogg", ".wav"]
    assert [soundfile.info(path).samplerate for path in files] == [16_000, 44_100, 48_000, 44_100]
    before = contents(tmp_path)
    assert rows == [
        write_extra(tmp_path, 0, number) for number in (0, 1, 2, 3, 5, 9, 13)
    ]  # with the files already written
    for path in files:
        path.unlink()
        write_extra(tmp_path, 0, int(path.stem))
    assert contents(tmp_path) == before
