"""Windows of long sound, subtitles, and the layouts of corpora."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnivinci_jax.errors import DataError
from omnivinci_jax.sequence.chat import Inline, Media
from omnivinci_jax.transcription.layouts import read_utterances
from omnivinci_jax.transcription.subtitles import Segment, joined, write_transcript
from omnivinci_jax.transcription.windows import cut_sound, spans

RATE = 16_000


def test_long_sound_is_cut_in_its_pauses(tmp_path):
    random = np.random.default_rng(0)
    waveform = random.normal(scale=0.1, size=25 * RATE).astype(np.float32)
    for pause in (8.0, 17.2):  # in the last third of a window of 10 s
        waveform[int(pause * RATE) : int((pause + 0.3) * RATE)] = 0
    found = spans(waveform, RATE, 10.0)
    assert [start for start, _ in found[1:]] == [end for _, end in found[:-1]]
    assert found[0][0] == 0 and found[-1][1] == len(waveform) and all(end - start <= 10 * RATE for start, end in found)
    assert 8.0 < found[0][1] / RATE < 8.3 and 17.2 < found[1][1] / RATE < 17.5
    soundfile.write(tmp_path / "a.wav", waveform, RATE, "FLOAT")
    item = Media("sound", str(tmp_path / "a.wav"))
    assert [window.item for window in cut_sound(item, RATE, 25.0)] == [item]
    windows = cut_sound(item, RATE, 10.0)
    contents = [window.item.stored.content for window in windows if isinstance(window.item.stored, Inline)]
    (tmp_path / "b.wav").write_bytes(contents[1])
    np.testing.assert_array_equal(soundfile.read(tmp_path / "b.wav", dtype="float32")[0], waveform[slice(*found[1])])
    assert [(window.start, window.end) for window in windows] == [(a / RATE, b / RATE) for a, b in found]
    assert spans(np.zeros(25 * RATE, np.float32), RATE, 10.0)[0][1] > 9.9 * RATE  # all is quiet: as long as possible


def test_subtitles():
    segments = [
        Segment(0.0, 1.5, "Salt & <pepper>"),
        Segment(1.5, 3600.0, ""),
        Segment(3600.0, 3661.0004, "two\n\nlines"),
    ]
    assert write_transcript("a.wav", segments, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nSalt &amp; &lt;pepper&gt;\n\n"
        "01:00:00.000 --> 01:01:01.000\ntwo lines\n"
    )
    assert write_transcript("a.wav", segments, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nSalt & <pepper>\n\n2\n01:00:00,000 --> 01:01:01,000\ntwo lines\n"
    )
    assert write_transcript("a.wav", segments, "text") == "Salt & <pepper>\ntwo\n\nlines\n"
    whole = json.loads(write_transcript("a.wav", segments, "json"))
    assert whole["file"] == "a.wav" and whole["text"] == joined(segments) == "Salt & <pepper> two\n\nlines"
    assert whole["segments"][1] == {"start": 1.5, "end": 3600.0, "text": ""}
    assert write_transcript("a.wav", [], "vtt") == "WEBVTT\n" and write_transcript("a.wav", [], "srt") == ""


def found(path: Path) -> list[tuple]:
    return [(item.item.path, item.name, item.reference, item.where) for item in read_utterances(path)]


def test_the_layouts_of_corpora(tmp_path):
    libri = tmp_path / "test-clean" / "61" / "70968"
    libri.mkdir(parents=True)
    (libri / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN A\n61-70968-0001 GIVE NOT\n")
    assert found(tmp_path / "test-clean") == [
        (f"{libri}/61-70968-0000.flac", "61-70968-0000", "HE BEGAN A", f"{libri}/61-70968.trans.txt:1"),
        (f"{libri}/61-70968-0001.flac", "61-70968-0001", "GIVE NOT", f"{libri}/61-70968.trans.txt:2"),
    ]
    face = tmp_path / "face"
    face.mkdir()
    (face / "metadata.csv").write_text('file_name,transcription\nb/x.mp3,"So, é"\n', encoding="utf-8-sig")
    assert found(face) == [(f"{face}/b/x.mp3", "b/x.mp3", "So, é", f"{face}/metadata.csv:2")]
    (face / "metadata.jsonl").write_text('{"file_name": "x.mp3", "text": "yes"}\n\n{"file_name": "y.mp3"}\n')
    assert [item[1:] for item in found(face)] == [
        ("x.mp3", "yes", f"{face}/metadata.jsonl:1"), ("y.mp3", None, f"{face}/metadata.jsonl:3"),
    ]  # fmt: skip
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"audio_filepath": "/a.wav", "duration": 2, "text": ""}\n')
    assert found(manifest) == [("/a.wav", "/a.wav", "", f"{manifest}:1")]
    plain = tmp_path / "plain"
    (plain / "in").mkdir(parents=True)
    for name in ("b.WAV", "in/a.mp4", "notes.txt"):
        (plain / name).touch()
    assert [item[:3] for item in found(plain)] == [
        (f"{plain}/b.WAV", "b.WAV", None), (f"{plain}/in/a.mp4", "in/a.mp4", None),
    ]  # fmt: skip
    assert found(plain / "in" / "a.mp4") == [(f"{plain}/in/a.mp4", "a.mp4", None, f"{plain}/in/a.mp4")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"audio": "a.wav"}\n{"text": "x"}', "a.jsonl:2: names no sound: give its path as 'file_name', "),
        ("a.jsonl", "[1]", "a.jsonl:1: must be a JSON object with a sound and a text: [1]"),
        ("a.jsonl", "{", "a.jsonl:1: not JSON"),
        ("a.jsonl", "", "a.jsonl: has no lines"),
        ("a.jsonl", b"\xff", "a.jsonl: not UTF-8"),
        ("a.jsonl", '{"audio": "https://a.org/a.wav"}', "a.jsonl:1: 'https://a.org/a.wav': URLs are not read"),
        ("in/notes.txt", "", "in: has no sound or video file"),
        (None, "", "none: no such file or folder"),
    ],
)
def test_what_is_no_corpus_is_one_line(name, content, message, tmp_path):
    path = tmp_path / (name or "none")
    if name:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=re.escape(message)):
        read_utterances(path if path.suffix != ".txt" else path.parent)
