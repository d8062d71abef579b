"""`omnivinci transcribe`: files, folders, word error rates, and the cascade with an external recogniser."""

import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

from omnivinci_jax import cli
from omnivinci_jax.config_json import write_config
from omnivinci_jax.data.cascade import heard, with_transcripts
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.shards import on_disk
from omnivinci_jax.errors import MediaError, UserError
from omnivinci_jax.evaluation import command as evaluation
from omnivinci_jax.generate.answers import Answer
from omnivinci_jax.generate.assistant import Assistant
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.chat import TRANSCRIBE, Conversation, Media, Message
from omnivinci_jax.speech.recognition import PocketSphinx, make_recogniser
from omnivinci_jax.transcription import command
from tests.media.files import numbered_frames, tone, write_video
from tests.tiny import tiny_config, tiny_tokenizer

RATE = 16_000
WORDS = {300: "hello", 500: "world", 700: "again", 900: "mister"}


def pitch(path: str) -> str:
    """Returns the word for the pitch of a sound."""
    waveform, rate = soundfile.read(path)
    hertz = np.argmax(np.abs(np.fft.rfft(waveform))) * rate / len(waveform)
    return WORDS[min(WORDS, key=lambda known: abs(known - hertz))]


class Listener(Assistant):
    """Says the word for the pitch of each sound that it is asked about; keeps what it was asked."""

    asked: list

    def generate_batch(self, questions, **sampling):
        Listener.asked += questions
        answers = []
        for question in questions:
            try:
                with on_disk(question.media[0]) as file:
                    answers.append(Answer(f"{pitch(file.path)} ", (1,), "end", 9, 0.1, 1.0))
            except soundfile.LibsndfileError:
                answers.append(MediaError(f"{question.media[0].path}: no such file"))
        return answers


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "model"
    (folder / "params").mkdir(parents=True)
    write_config(tiny_config(), folder / "config.json")
    Listener.asked = []
    for module in (command, evaluation):
        monkeypatch.setattr(module, "load", lambda *_: Listener(OmniVinci(tiny_config()), {}, None))
    return folder


def tones(path: Path, *hertz: int) -> Path:
    """Writes a second of each tone, with pauses of 0.2 s between them."""
    times = np.arange(RATE) / RATE
    parts = [np.concatenate([np.sin(2 * np.pi * pitch * times), np.zeros(RATE // 5)]) for pitch in hertz]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.concatenate(parts)[: -RATE // 5], RATE)
    return path


def run(capsys, *flags: object) -> tuple[int, str, str]:
    code = cli.main(["transcribe", *map(str, flags)])
    return code, *capsys.readouterr()


def test_a_file_and_long_sound_in_windows(model, tmp_path, capsys):
    short = tones(tmp_path / "short.wav", 500)
    assert run(capsys, short, "--model", model)[:2] == (0, "world\n")
    (item, prompt) = Listener.asked[0].messages[0].content
    assert item == Media("sound", str(short)) and prompt == TRANSCRIBE
    long = tones(tmp_path / "long.wav", 300, 500, 700)
    code, out, _ = run(capsys, long, "--model", model, "--window_seconds", 1.4, "--format", "json", "--prompt", "Go.")
    found = json.loads(out)
    assert code == 0 and found["text"] == "hello world again" and Listener.asked[-1].messages[0].content[1] == "Go."
    ends = [segment["end"] for segment in found["segments"]]
    assert 1.0 < ends[0] < 1.2 and 2.2 < ends[1] < 2.4 and ends[2] == pytest.approx(3.4)
    for flags, message in (
        ((long,), "give --model DIR, --recogniser NAME, or both"),
        ((long, "--model", model, "--rows", 0), "--rows is 0: it must be above 0"),
        ((tmp_path / "no.wav", "--model", model), "no.wav: no such file or folder"),
        ((long, "--recogniser", "whisper"), "the url of the recogniser is 'whisper': give http://HOST:PORT"),
    ):
        code, out, err = run(capsys, *flags)
        assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1


def test_a_folder_goes_on_where_it_was(model, tmp_path, capsys):
    sounds, out = tmp_path / "sounds", tmp_path / "out"
    tones(sounds / "a.wav", 300)
    tones(sounds / "in" / "b.wav", 500)
    (sounds / "c.wav").write_bytes(b"no sound")
    assert "has 3 sounds: give --out FOLDER" in run(capsys, sounds, "--model", model)[2]
    flags = (sounds, "--model", model, "--out", out, "--format", "srt")
    code, _, err = run(capsys, *flags)
    assert code == 1 and f"omnivinci transcribe: {sounds}/c.wav" in err
    assert (out / "a.wav.srt").read_text() == "1\n00:00:00,000 --> 00:00:01,000\nhello\n"
    assert (out / "in" / "b.wav.srt").read_text().endswith("world\n")
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["a.wav.srt", "b.wav.srt"]
    asked = len(Listener.asked)
    tones(sounds / "c.wav", 700)
    assert run(capsys, *flags)[0] == 0 and len(Listener.asked) == asked + 1
    assert (out / "c.wav.srt").read_text().endswith("again\n")
    assert run(capsys, *flags)[0] == 0 and len(Listener.asked) == asked + 1


def test_word_error_rate_of_a_corpus(model, tmp_path, capsys):
    folder = tmp_path / "dev" / "1" / "2"
    for name, hertz in (("1-2-0", 900), ("1-2-1", 500), ("1-2-3", 300)):
        tones(folder / f"{name}.flac", hertz)
    references = folder / "1-2.trans.txt"
    references.write_text("1-2-0 MR\n1-2-1 NEW WORLD\n1-2-2 GONE\n1-2-3\n")
    out = tmp_path / "wer.json"
    flags = (tmp_path / "dev", "--model", model, "--wer", out)
    code, _, err = run(capsys, *flags)
    assert code == 2 and f"{references}:4: has no reference text, or an empty one" in err
    code, printed, _ = run(capsys, *flags, "--max_skipped", 0.02)
    expected = jiwer.wer(["mister", "new world"], ["mister", "world"])
    assert code == 0 and f"| **overall** | {100 * expected:.1f} |" in printed
    assert "failures: 2 of 4 questions" in printed and "1-2-2.flac" in printed
    results = json.loads(out.read_text())
    assert results["overall"]["value"] == pytest.approx(expected) and results["settings"]["window_seconds"] == 30
    samples = [json.loads(line) for line in (tmp_path / "wer.samples.jsonl").read_text().splitlines()]
    assert samples[1]["answer"] == "world" and samples[1]["right"] == ["NEW WORLD"]
    assert samples[1]["why"] == "0 substituted, 1 deleted, 0 inserted of 2 words"
    asked = len(Listener.asked)
    run(capsys, *flags, "--max_skipped", 0.02, "--normalizer", "basic")
    assert len(Listener.asked) == asked + 0 and json.loads(out.read_text())["overall"]["value"] == pytest.approx(2 / 3)
    references.write_text("1-2-0 MR\n1-2-1 OLD WORLD\n")
    assert "wer.answers.jsonl: has answers to other questions: delete it" in run(capsys, *flags)[2]


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """URL of a server that hears the pitch of a sound, and a list of its failures to come: statuses, or texts."""
    failures: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/audio/transcriptions" and b'name="model"\r\n\r\nbig\r\n' in body
            start = body.index(b"RIFF")
            boundary = re.search("boundary=(.+)", self.headers["Content-Type"])[1].encode()
            content = body[start : body.index(b"\r\n--" + boundary + b"--")]
            failure = failures.pop(0) if failures else ""
            self.send_response(int(failure) if failure.isdigit() else 200)
            self.end_headers()
            text = json.dumps({"text": f" {pitch(io.BytesIO(content))} "})
            self.wfile.write((failure or text).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", failures
        serving.shutdown()


def test_a_server_alone_and_in_the_cascade(model, server, tmp_path, capsys):
    url, failures = server
    recogniser = ("--recogniser", url, "--recogniser_model", "big")
    sound = tones(tmp_path / "a.wav", 700)
    assert run(capsys, sound, *recogniser)[:2] == (0, "again\n") and not Listener.asked
    assert run(capsys, sound, *recogniser, "--model", model)[:2] == (0, "again\n")
    assert Listener.asked[0].messages[0].content[1:] == ("\nA speech recognizer heard: again\n", TRANSCRIBE)
    failures.append("<html>")
    code, _, err = run(capsys, sound, *recogniser)
    assert code == 1 and "transcriptions: its answer has no text: b'<html>'" in err
    rows = [(tones(tmp_path / f"{index}.wav", hertz), WORDS[hertz]) for index, hertz in enumerate((300, 500, 700))]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"audio": str(path), "text": word}) + "\n" for path, word in rows))
    flags = (corpus, *recogniser, "--wer", tmp_path / "wer.json")
    failures += ["", "503"]  # the server dies in the middle: nothing counts, and the run goes on later
    code, out, err = run(capsys, *flags)
    assert (code, out) == (2, "") and "/v1/audio/transcriptions: 503 Service Unavailable" in err
    assert not (tmp_path / "wer.json").exists()
    failures += ["400"]  # it refuses one sound
    code, out, _ = run(capsys, *flags)
    assert code == 0 and "failures: 1 of 3" in out and f"{corpus}:2: {url}/v1/audio/transcriptions: 400" in out
    assert json.loads((tmp_path / "wer.json").read_text())["overall"] == {"value": 0, "low": 0, "high": 0, "count": 2}
    assert len((tmp_path / "wer.answers.jsonl").read_text().splitlines()) == 3
    closed = run(capsys, sound, "--recogniser", "http://127.0.0.1:9")
    assert closed[0] == 2 and "the recogniser does not answer" in closed[2]


def test_the_cascade_in_evaluate(model, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "Assistant", Listener)
    monkeypatch.setattr(evaluation, "load", lambda *_: Listener(None, None, Processor(tiny_config(), tiny_tokenizer())))
    url, _ = server
    tones(tmp_path / "a.wav", 900)
    content = [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "Who?"}]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": [{"role": "user", "content": content}], "answer": "mister"}))
    flags = ["evaluate", "--model", model, "--data", data, "--out", tmp_path / "out.json", "--metric", "exact"]
    flags = [str(flag) for flag in (*flags, "--recogniser", url, "--recogniser_model", "big")]
    assert cli.main(flags) == 0
    assert Listener.asked[0].messages[0].content[1:] == ("\nA speech recognizer heard: mister\n", "Who?")
    assert f"recogniser: '{url}', candidates: 1, recogniser_model: 'big'" in capsys.readouterr().out
    assert cli.main([*flags, "--drop", "sound"]) == 2
    assert "--recogniser hears the sound that --drop sound takes away" in capsys.readouterr().err


def test_transcripts_stand_beside_sounds_and_videos_with_sound(tmp_path):
    class Counting:
        def transcribe(self, waveform, count=1):
            return [f"{len(waveform)}", "two"][:count]

    sound = Media("sound", str(tones(tmp_path / "a.wav", 300)))
    silent = Media("video", str(write_video(tmp_path / "silent.mp4", numbered_frames(4))))
    video = Media("video", str(write_video(tmp_path / "b.mp4", numbered_frames(4), waveform=tone(0.5))))
    muted = replace(video, muted=True)
    question = Conversation((Message("user", (sound, video, silent, muted, "What?")),))
    content = with_transcripts(question, Counting()).messages[0].content
    assert content[:3] == (sound, "\nA speech recognizer heard: 16000\n", video)
    found = re.fullmatch(r"\nA speech recognizer heard: (\d+)\n", str(content[3]))
    assert found and abs(int(found[1]) - RATE // 2) < RATE // 10 and content[4:] == (silent, muted, "What?")
    assert heard(["a", "b"]) == "A speech recognizer heard one of these:\n1. a\n2. b"


def test_pocketsphinx_is_the_library(tmp_path):
    """Whatever was heard before, the texts of a sound are those of a new decoder, all different, the best first."""
    from pocketsphinx import Decoder

    random = np.random.default_rng(0)
    buzz = np.sin(np.cumsum(2 * np.pi * (200 + 100 * np.sin(np.arange(RATE // 4) / 800)) / RATE))
    buzz = (0.3 * buzz + random.normal(scale=0.02, size=buzz.size)).astype(np.float32)
    decoder = Decoder(samprate=RATE, loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw((buzz * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    recogniser = make_recogniser("pocketsphinx")
    assert isinstance(recogniser, PocketSphinx)
    recogniser.transcribe(buzz[::-1].copy())
    texts = recogniser.transcribe(buzz, 5)
    assert texts[0] == decoder.hyp().hypstr and len(set(texts)) == len(texts) <= 5
    assert set(texts[1:]) <= {found.hypstr for found in decoder.nbest() if found}
    with pytest.raises(UserError, match="the url of the recogniser is 'sphinx'"):
        make_recogniser("sphinx")
