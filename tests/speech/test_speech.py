"""Speech: sentences of a streamed text, espeak-ng, a speech server, the cache, and spoken prompts."""

import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.setup import open_mixture
from omnivinci_jax.errors import ConfigError, UserError
from omnivinci_jax.media import decode
from omnivinci_jax.sequence.batch import Capacity
from omnivinci_jax.settings import DataConfig, Source, VoiceConfig
from omnivinci_jax.speech import Sound, make_voice, read_aloud, speak, spoken_file
from omnivinci_jax.speech.voice import sentences
from tests.tiny import tiny_config, tiny_tokenizer

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is not installed (Debian's package of that name)"
)


@given(st.text("ab.! \n。", max_size=20))
def test_sentences_contain_the_whole_text_for_any_pieces(text):
    for pieces in ([text], list(text)):
        found = list(sentences(pieces))
        assert "".join("".join(found).split()) == "".join(text.split()) and all(map(str.strip, found))
    assert all(mark not in sentence.strip()[:-1] for sentence in sentences([text]) for mark in (". ", "! ", "\n"))


def test_a_sentence_is_yielded_as_soon_as_the_next_begins():
    read = []

    def pieces() -> Iterator[str]:
        for piece in ("A red ", "ball. It", " rolls", "! At 3.5 m", "/s"):
            read.append(piece)
            yield piece

    found = [(sentence, len(read)) for sentence in sentences(pieces())]
    assert found == [("A red ball.", 2), ("It rolls!", 4), ("At 3.5 m/s", 5)]


@needs_espeak
def test_espeak_is_deterministic_and_speaks_longer_texts_for_longer():
    voice = make_voice(VoiceConfig())
    short, again, long = (voice.say(text) for text in ("Yes.", "Yes.", "-v is what this begins with, and it goes on."))
    assert short.rate == 22_050 and np.array_equal(short.waveform, again.waveform)
    assert len(long.waveform) > 2 * len(short.waveform) and np.abs(short.waveform).max() > 0.1
    parts = list(speak(voice, ["Yes. ", "No."]))
    assert len(parts) == 2 and np.array_equal(parts[0].waveform, short.waveform)
    with pytest.raises(UserError, match=r"espeak-ng -v klingonese: .*does not exist"):
        make_voice(VoiceConfig(voice="klingonese")).say("no")


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict]]]:
    """URL and requests of a server that answers with a tone, but fails on "boom" and answers "html" with HTML."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, **request})
            self.send_response(500 if request["input"] == "boom" else 200)
            self.end_headers()
            file = io.BytesIO()
            soundfile.write(file, np.sin(np.arange(2400) / 10), 24_000, format="WAV")
            self.wfile.write(b"<html>" if request["input"] in ("boom", "html") else file.getvalue())

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://localhost:{http.server_port}", requests
    http.shutdown()
    http.server_close()


def test_a_server_gets_openai_requests(server):
    url, requests = server
    sound = make_voice(VoiceConfig("server", "nova", url, "tts-2")).say("Hello.")
    assert isinstance(sound, Sound) and (sound.rate, len(sound.waveform)) == (24_000, 2400)
    body = {"model": "tts-2", "input": "Hello.", "voice": "nova", "response_format": "wav"}
    assert requests == [{"path": "/v1/audio/speech", **body}]


def test_a_failing_server_raises_one_line_errors(server):
    url, _ = server
    for text, message in (("boom", "/v1/audio/speech: 500"), ("html", "its answer is not a sound file")):
        with pytest.raises(UserError, match=message):
            make_voice(VoiceConfig("server", url=url)).say(text)
    with pytest.raises(UserError, match="does not answer"):
        make_voice(VoiceConfig("server", url="http://localhost:1")).say("Hello.")
    with pytest.raises(UserError, match="the url of the speech server is ''"):
        make_voice(VoiceConfig("server"))


def test_speech_is_cached_by_voice_and_text(server, tmp_path):
    url, requests = server
    voice, other = (make_voice(VoiceConfig("server", name, url)) for name in ("nova", "echo"))
    folder = epath.Path(tmp_path / "speech")
    path = spoken_file(voice, "Hello.", folder)
    assert path == spoken_file(voice, "Hello.", folder) and len(requests) == 1
    assert len({path, spoken_file(voice, "Bye.", folder), spoken_file(other, "Hello.", folder)}) == len(requests) == 3
    assert decode.probe_audio(path) == 0.1


def test_a_text_is_read_aloud_while_it_is_generated(server, tmp_path):
    url, requests = server
    voice, path = make_voice(VoiceConfig("server", url=url)), tmp_path / "said.wav"

    def pieces() -> Iterator[str]:
        yield "One. Two"
        while not requests:  # the first sentence is spoken before the second is complete
            time.sleep(0.01)
        yield " and three."

    assert "".join(read_aloud(voice, pieces(), path)) == "One. Two and three."
    assert [request["input"] for request in requests] == ["One.", "Two and three."]
    assert soundfile.info(path).frames == 2 * 2400 and soundfile.info(path).samplerate == 24_000

    cut = read_aloud(voice, iter(["Three. Fo", "ur."]), tmp_path / "cut.wav")
    next(cut)
    cut.close()
    assert [request["input"] for request in requests[2:]] == ["Three.", "Fo"]
    assert list(read_aloud(voice, [" ", "\n"], tmp_path / "none.wav")) == [" ", "\n"]
    with pytest.raises(UserError, match="500"):
        list(read_aloud(voice, ["boom"], tmp_path / "none.wav"))
    assert {item.name for item in tmp_path.iterdir()} == {"said.wav", "cut.wav"}


def write_questions(path: Path, count: int) -> str:
    turns = [
        [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": "Yes."}]
        for number in range(count)
    ]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return str(path)


def test_a_share_of_a_sources_prompts_is_spoken(server, tmp_path):
    url, requests = server
    processor = Processor(tiny_config(), tiny_tokenizer())
    path = write_questions(tmp_path / "questions.jsonl", 200)
    voice = VoiceConfig("server", url=url)

    def spoken(share: float) -> set[int]:
        settings = DataConfig(
            sources=(Source("spoken", path, "text", speech_share=share), Source("written", path, "text")),
            capacity=Capacity(rows=1, slots=256, tiles=1, windows=4, clips=2),
            voice=voice,
            workers=0,
            cache=str(tmp_path / "cache"),
        )
        mixture = open_mixture(processor, settings)
        heard = set()
        for sample in range(len(mixture)):
            conversation = mixture.conversation(sample)
            has_sound = [item.kind for item in conversation.media] == ["sound"]
            assert has_sound == (mixture.sizes[sample, 2] > 0)
            assert conversation.messages[-1].content == ("Yes.",)  # trained text is not spoken
            if has_sound:
                assert mixture.source_of(sample) == 0
                heard.add(sample)
        return heard

    half = spoken(0.5)
    assert 70 < len(half) < 130 and len(requests) == len(half)
    assert half < spoken(1.0) and len(requests) == 200  # the smaller share's speech is cached
    with pytest.raises(ConfigError, match=r"sources\.spoken\.speech_share is 1\.5: give 0 to 1"):
        spoken(1.5)
