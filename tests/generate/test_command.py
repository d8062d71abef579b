"""`omnivinci generate` and `chat`: questions, output, and one-line errors."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile

from omnivinci_jax import cli, model_dir
from omnivinci_jax.generate import chat, command
from omnivinci_jax.generate.answers import Stream
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from omnivinci_jax.settings import VoiceConfig
from omnivinci_jax.speech import make_voice, speak
from tests.media.mixed import FILES, question_about, write_mixed_files


@pytest.fixture(scope="module")
def folder(assistant, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    model_dir.save(path, assistant.model.config, assistant.params, assistant.processor.tokenizer)
    return path


@pytest.fixture(autouse=True)
def loaded(assistant, folder, monkeypatch):
    """Replaces the folder's model with the session's, which has compiled programs."""
    known = command.load
    monkeypatch.setattr(command, "load", lambda path, *args: assistant if path == folder else known(path, *args))


def arguments(*flags: object):
    return cli.parser().parse_args(["generate", "--model", "x", *map(str, flags)])


def content(*flags: object) -> list:
    items = command.parse_question(arguments(*flags)).messages[-1].content
    return [Path(item.path).name if isinstance(item, Media) else item for item in items]


def test_media_order_and_prompt_position(tmp_path):
    for name in ("a", "b", "c", "q"):
        (tmp_path / name).write_bytes(b"x")
    a, b, c, q = (tmp_path / name for name in ("a", "b", "c", "q"))
    media = ("--image", a, "--video", b, "--audio", c)
    assert content(*media, "--prompt", "What?") == ["a", "b", "c", "What?"]
    assert content(*media, "--prompt", "What?", "--prompt_position", "prefix") == ["What?", "a", "b", "c"]
    assert content(*media, "--prompt", "What?", "--prompt_position", "mid") == ["a", "What?", "b", "c"]
    assert content(*media[:4], "--prompt", "What?", "--prompt_position", "mid") == ["a", "What?", "b"]
    assert content(*media, "--speech_prompt", q) == ["a", "b", "c", "q"]
    assert content(*media, "--speech_prompt", q, "--prompt", "Now.", "--prompt_position", "prefix")[:2] == ["q", "Now."]
    placed = content("--video", b, "--image", a, "--image", c, "--prompt", "<image> and <image> in <video>?")
    assert placed == ["a", " and ", "c", " in ", "b", "?"]
    assert content("--prompt", "What does <video> do, or <|im_end|>?") == ["What does <video> do, or <|im_end|>?"]
    assert content("--prompt", "caf\udce9") == ["caf\ufffd"]  # Latin-1 bytes, as Python passes them
    question = command.parse_question(arguments("--prompt", "Hello", "--system", "Be brief."))
    assert question.messages == (Message("system", ("Be brief.",)), Message("user", ("Hello",)))


def test_audio_tracks_belong_to_the_file_before_them(tmp_path, capsys):
    a, b, c = (tmp_path / name for name in "abc")
    for file in (a, b, c):
        file.write_text("x")
    media = ("--video", a, "--audio_track", 2, "--audio", b, "--video", c, "--audio_track", 1)
    for prompt in ("What?", "<sound> and <video> and <video>?"):
        items = command.parse_question(arguments(*media, "--prompt", prompt)).media
        assert {item.path[-1]: item.track for item in items} == {"a": 2, "b": None, "c": 1}
    for flags in (("--audio_track", 2, "--video", a), ("--image", a, "--audio_track", 2)):
        with pytest.raises(SystemExit):
            arguments(*flags)
        assert "--audio_track N belongs after the --video or --audio" in capsys.readouterr().err


def run(capsys, *flags: object) -> tuple[int, str, str]:
    code = cli.main([str(flag) for flag in flags])
    return code, *capsys.readouterr()


def test_answers_and_their_speed(assistant, folder, clips, capsys):
    expected = assistant.generate([clips[0], "What?"], max_new_tokens=9)
    flags = ("generate", "--model", folder, "--video", clips[0], "--prompt", "What?", "--max_new_tokens", 9)
    code, out, err = run(capsys, *flags)
    assert (code, out) == (0, expected.text + "\n")
    assert err.startswith("first token after ") and err.endswith(" tokens/s\n") and len(err.splitlines()) == 1
    code, out, _ = run(capsys, *flags, "--json")
    assert json.loads(out)["text"] == expected.text and json.loads(out)["finish"] == expected.finish
    code, out, _ = run(capsys, *flags, "--json", "--samples", 2, "--temperature", 2)
    assert len({json.loads(line)["text"] for line in out.split("\n") if line}) == 2
    _, _, err = run(capsys, *flags[:-1], 1)  # one token has no rate
    assert err.startswith("first token after ") and err.endswith(" positions of prompt)\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give something to answer: --prompt TEXT, --speech_prompt FILE, or media"),
        (["--prompt", "x", "--temperature", "-1"], "temperature is -1.0: it must be 0 (greedy) or more"),
        (["--video", "no.mp4", "--prompt", "x"], "no.mp4: no such file"),
        (["--image", "CLIP", "--prompt", "<video>?"], "--prompt: 1 <video> in the text but 0 video path(s); give one"),
        (
            ["--video", "https://a.org/b.mp4", "--prompt", "x"],
            "--video: 'https://a.org/b.mp4': URLs are not read",
        ),
        (["--image", "data:image/png;base64,AB=C", "--prompt", "x"], "a data: URI whose base64 is broken"),
        (["--video", "CLIP", "--prompt_position", "mid"], "--prompt_position mid goes between media"),
        (["--prompt", "x", "--speak", "a.wav", "--json"], "--speak reads one answer aloud as it comes"),
        (["--prompt", "x", "--speak", "CLIP"], "already exists; nothing was overwritten"),
        (["--prompt", "x", "--speak", "no/such/a.wav"], "no/such/a.wav: its folder does not exist"),
        (["--image", "CLIP", "--prompt", "x"], "is not an image; give a video or a sound as such"),
        (["--data", "a.jsonl", "--image", "CLIP"], "--data answers each of its conversations once: omit --prompt,"),
        (["--prompt", "word " * 3000], "but the model reads 4096: at most 3840 are left for the prompt"),
    ],
)
def test_errors_are_one_line(flags, message, folder, clips, capsys):
    flags = [str(clips[0]) if flag == "CLIP" else flag for flag in flags]
    code, out, err = run(capsys, "generate", "--model", folder, *flags)
    assert (code, out) == (2, "")
    assert err.startswith("omnivinci generate: ") and message in err and len(err.splitlines()) == 1


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_an_answer_is_spoken(folder, tmp_path, capsys):
    flags = ("generate", "--model", folder, "--prompt", "Hello", "--max_new_tokens", 20)
    _, expected, _ = run(capsys, *flags)
    code, out, _ = run(capsys, *flags, "--speak", tmp_path / "said.wav")
    assert (code, out) == (0, expected)
    spoken = b"".join(sound.waveform.tobytes() for sound in speak(make_voice(VoiceConfig()), [expected]))
    assert soundfile.read(tmp_path / "said.wav", dtype="float32")[0].tobytes() == spoken


def test_a_model_without_its_tokenizer(folder, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    code, _, err = run(capsys, "generate", "--model", tmp_path, "--prompt", "Hello")
    assert code == 2 and "tokenizer.json: there is no tokenizer" in err and len(err.splitlines()) == 1


def test_a_file_of_questions(assistant, folder, clips, tmp_path, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    paths, lines = [clips[0], broken, clips[1]], []
    for path in paths:
        asked = [{"type": "video", "video": str(path)}, {"type": "text", "text": "What?"}]
        lines.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "known"}]})
    data = tmp_path / "questions.jsonl"
    lines.append({"messages": lines[0]["messages"][1:]})
    data.write_text("\n".join([*map(json.dumps, lines), '{"messages": [}']))
    flags = ("generate", "--model", folder, "--data", data, "--max_new_tokens", 5, "--rows", 2)
    code, out, err = run(capsys, *flags)
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and "3 of 5 could not be answered" in err
    assert answers[3]["error"] == f"{data}:4: there is no prompt: the only message is the assistant's"
    assert answers[4]["error"].startswith(f"{data}:5: not JSON: ")
    code, out, err = run(capsys, *flags, "--max_skipped", 0.3)
    stopped = [json.loads(line) for line in out.splitlines()]
    assert code == 2 and [line.get("text") for line in stopped] == [line.get("text") for line in answers[:4]]
    assert err.startswith(f"omnivinci generate: {data}: 2 of 5 samples cannot be used, more than max_skipped = 0.3 ")
    assert answers[1]["error"].startswith(f"{data}:2: {broken}")
    for path, answer in ((clips[0], answers[0]), (clips[1], answers[2])):
        assert answer["text"] == assistant.generate([path, "What?"], max_new_tokens=5).text


def test_every_kind_of_broken_file_has_its_error(folder, tmp_path, capsys):
    """As in tests/data/test_agreement.py."""
    write_mixed_files(tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(question_about(*file[:3]) for file in FILES))
    flags = ("--data", data, "--max_new_tokens", 1, "--rows", len(FILES))
    code, out, _ = run(capsys, "generate", "--model", folder, *flags)
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and len(answers) == len(FILES)
    for line, ((_, name, _, problem), answer) in enumerate(zip(FILES, answers, strict=True), start=1):
        if problem is None:
            assert answer["tokens"] == 1
        else:
            assert answer["error"].startswith(f"{data}:{line}: {tmp_path / name}: {problem}")


def test_chat(assistant, folder, clips, tmp_path, capsys, monkeypatch):
    spaced = tmp_path / "a clip.webm"
    spaced.write_bytes(clips[0].read_bytes())
    lines = iter(
        [f"'{spaced}' what's this", "/tmp/none.mp4", "and then?", KeyboardInterrupt, "/new", "Hello", EOFError]
    )
    asked = []

    def typed(_prompt: str) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    stream = assistant.stream
    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(type(assistant), "stream", lambda self, q, **s: asked.append(q) or stream(q, **s))
    assert cli.main(["chat", "--model", str(folder), "--max_new_tokens", "5"]) == 0
    first, second, third, fourth = (question.messages for question in asked)
    assert first[0].content == (Media("video", str(spaced)), "what's this")
    assert second[0] == first[0] and second[1].role == "assistant" and third[:3] == second[:3]
    assert fourth == (Message("user", ("Hello",)),)


def test_ctrl_c_ends_an_answer(assistant, monkeypatch, capsys):
    whole = assistant.generate("Hello", max_new_tokens=30).text
    pieces = Stream.__iter__

    def interrupted(stream):
        yield next(pieces(stream))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "__iter__", interrupted)
        messages = chat.turn(assistant, (), "Hello", dict(max_new_tokens=30))
    assert [message.role for message in messages] == ["user", "assistant"]
    assert whole.startswith(messages[1].content[0]) and messages[1].content[0] != whole
    assert assistant.generate("Hello", max_new_tokens=30).text == whole


def test_dropped_files(clips, tmp_path):
    plain, spaced = str(clips[0]), tmp_path / "a clip's.webm"
    spaced.write_bytes(clips[0].read_bytes())
    assert chat.read_line(f"{plain} what is this?") == (Media("video", plain), "what is this?")
    escaped = str(spaced).replace(" ", "\\ ").replace("'", "\\'")
    for typed in (escaped, f'"{spaced}"', f"file://{str(spaced).replace(' ', '%20')}"):
        assert chat.read_line(f"what's in {typed} ?") == (Media("video", str(spaced)), "what's in ?")
    for text in ("don't read this.", "what's 3.5 / 2?", "'quoted' words"):
        assert chat.read_line(text) == (text,)


def test_a_conversation_is_a_question(assistant):
    asked = Conversation((Message("user", ("Hello",)),))
    assert assistant.generate(asked, max_new_tokens=3).tokens == assistant.generate("Hello", max_new_tokens=3).tokens
