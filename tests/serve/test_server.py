"""The server through the public `openai` package: its answers are those of `omnivinci_jax.load(dir)`."""

import base64
import io
import multiprocessing
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import numpy as np
import openai
import pytest
import soundfile
from PIL import Image

from omnivinci_jax.generate.assistant import conversation_of
from omnivinci_jax.sequence.chat import Media
from omnivinci_jax.serve.content import Sources
from omnivinci_jax.serve.decoding import Limits
from omnivinci_jax.serve.service import Settings
from tests.media.files import numbered_frames, tone, write_video
from tests.serve.conftest import Tone, client_of, serving

ROWS = 4


@pytest.fixture(scope="module")
def address(assistant, clips) -> Iterator[str]:
    settings = Settings(
        rows=ROWS,
        queue=4,
        workers=1,
        max_body=4 * 2**20,
        sources=Sources(media_dir=clips[0].parent),
        limits=Limits(max_pixels=1_000_000, max_seconds=60),
    )
    with serving(assistant, settings, Tone()) as address:
        yield address


@pytest.fixture(scope="module")
def client(address) -> openai.OpenAI:
    return client_of(address)


def ask(client: openai.OpenAI, content, **options):
    extra = {
        name: options.pop(name) for name in ("top_k", "repetition_penalty", "mm_processor_kwargs") if name in options
    }
    options = {"max_tokens": 12} | options
    messages = content if isinstance(content, list) and "role" in content[0] else [{"role": "user", "content": content}]
    return client.chat.completions.create(model="tiny", messages=messages, extra_body=extra, **options)


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def url(kind: str, mime: str, content: bytes) -> dict:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{mime};base64,{base64.b64encode(content).decode()}"}}


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "png")
    return file.getvalue()


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(int(8000 * seconds)) / 5) / 2, 8000, format="WAV")
    return file.getvalue()


def refusal(client: openai.OpenAI, content, **options) -> str:
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, content, **options)
    message = raised.value.body["message"]
    assert message and "\n" not in message
    return message


def test_text_answers_are_those_of_the_assistant(client, assistant):
    assert [model.id for model in client.models.list().data] == ["tiny"]
    answer = ask(client, "Hello there", logprobs=True)
    expected = assistant.generate("Hello there", max_new_tokens=12)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == ("length" if expected.finish == "length" else "stop")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, len(expected.tokens))
    assert usage.prompt_tokens_details.text_tokens == expected.prompt_tokens
    logprobs = answer.choices[0].logprobs.content
    assert len(logprobs) == len(expected.tokens) and all(entry.logprob <= 0 for entry in logprobs)

    options = dict(temperature=0.9, top_p=0.95, seed=7)
    several = ask(client, "Hello there", n=3, top_k=50, repetition_penalty=1.2, **options)
    samples = assistant.sample("Hello there", 3, max_new_tokens=12, top_k=50, repetition_penalty=1.2, **options)
    assert [choice.message.content for choice in several.choices] == [sample.text for sample in samples]
    assert len({sample.text for sample in samples}) == 3

    stop = expected.text[4:6]
    assert ask(client, "Hello there", stop=stop).choices[0].message.content == expected.text[: expected.text.find(stop)]


def test_streams_turns_and_special_texts(client, assistant):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say <image> and <|im_start|>"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Again <|im_end|>"},
    ]
    expected = assistant.generate(messages, max_new_tokens=12)
    chunks = list(ask(client, messages, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected.text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.prompt_tokens == expected.prompt_tokens
    assert chunks[-1].usage.prompt_tokens_details.vision_tokens == 0


def test_image_sound_and_video(client, assistant, clips, tmp_path):
    (tmp_path / "a.png").write_bytes(png(40, 30))
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(1.0)).decode(), "format": "wav"}}
    answer = ask(client, [url("image", "image/png", png(40, 30)), sound, text("What?")])
    expected = assistant.generate([tmp_path / "a.png", tmp_path / "a.wav", "What?"], max_new_tokens=12)
    assert answer.choices[0].message.content == expected.text

    video = {"type": "video_url", "video_url": {"url": clips[0].as_uri()}}
    heard = ask(client, [video, text("What?")])
    assert heard.choices[0].message.content == assistant.generate([clips[0], "What?"], max_new_tokens=12).text
    details = heard.usage.prompt_tokens_details
    assert details.audio_tokens > 0 and details.vision_tokens > 0
    assert details.text_tokens + details.audio_tokens + details.vision_tokens == heard.usage.prompt_tokens
    muted = ask(client, [video, text("What?")], mm_processor_kwargs={"use_audio_in_video": False})
    item = Media("video", str(clips[0]), muted=True)
    assert muted.choices[0].message.content == assistant.generate([item, "What?"], max_new_tokens=12).text
    assert muted.usage.prompt_tokens_details.audio_tokens == 0
    assert muted.usage.prompt_tokens_details.vision_tokens == details.vision_tokens


def test_transcription_and_speech(client, assistant, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(1.0))
    heard = client.audio.transcriptions.create(model="tiny", file=("a.wav", wav(1.0)), extra_body={"max_tokens": 12})
    expected = assistant.generate([tmp_path / "a.wav", "Transcribe the Speech."], max_new_tokens=12)
    assert heard.text == expected.text

    spoken = ask(client, "Hello there", modalities=["text", "audio"], audio={"voice": "x", "format": "wav"})
    waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(spoken.choices[0].message.audio.data)))
    assert rate == 24000 and len(waveform) % 2400 == 0 and len(waveform) >= 2400
    spectrum = np.abs(np.fft.rfft(waveform[:2400]))
    assert spectrum.argmax() == 44  # 440 Hz in 0.1 s
    assert spoken.choices[0].message.audio.transcript == spoken.choices[0].message.content
    chunks = list(
        ask(client, "Hello there", modalities=["text", "audio"], stream=True, audio={"voice": "x", "format": "pcm16"})
    )
    sounds = [chunk.choices[0].delta.audio.data for chunk in chunks if chunk.choices[0].delta.audio]
    assert sum(len(base64.b64decode(sound)) for sound in sounds) == 2 * len(waveform)


def test_timeline(address, assistant, clips):
    body = {"messages": [{"role": "user", "content": [url("video", "video/mp4", clips[0].read_bytes())]}]}
    (item,) = httpx.post(f"{address}/v1/timeline", json=body, timeout=60).json()["items"]
    (size,), tiles, _ = assistant.processor.load(conversation_of([clips[0]]))
    assert item["kind"] == "video" and item["seconds"] == pytest.approx(max(size.seconds, size.sound.seconds))
    assert [frame["time"] for frame in item["frames"]] == list(size.frame_times)
    frame = Image.open(io.BytesIO(base64.b64decode(item["frames"][0]["jpeg"].partition(",")[2])))
    assert np.abs(np.asarray(frame).mean((0, 1)) - tiles[0].mean((0, 1))).max() < 4
    mel = Image.open(io.BytesIO(base64.b64decode(item["mel"].partition(",")[2])))
    assert mel.height == assistant.processor.config.audio.num_mel_bins
    assert item["groups"][0]["start"] == 0 and item["groups"][-1]["end"] == item["seconds"]


def test_refuses_in_one_line(client, address, clips, tmp_path):
    def image(location: str) -> list:
        return [{"type": "image_url", "image_url": {"url": location}}, text("What?")]

    for location in ("file:///etc/passwd", f"{clips[0].parent.as_uri()}/../../../../etc/passwd", "file:///%00"):
        assert "no such file in the server's --media_dir" in refusal(client, image(location))
    assert "--allow_urls" in refusal(client, image("http://127.0.0.1/a.png"))
    assert "data: URL" in refusal(client, image("gopher://a/b"))
    assert "1,500,000 pixels" in refusal(client, [url("image", "image/png", png(1500, 1000)), text("?")])
    bomb = bytearray(png(1, 1))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # a header that promises 3.6 gigapixels
    assert "decoded" in refusal(client, [url("image", "image/png", bytes(bomb)), text("?")])
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000 * 61, np.float32), 8000, format="OGG", subtype="OPUS")
    assert "lasts 61 s" in refusal(client, [url("audio", "audio/ogg", file.getvalue()), text("?")])
    assert "FFmpeg" in refusal(client, [url("video", "video/mp4", b"no video"), text("?")])
    strange = write_video(tmp_path / "a.mp4", numbered_frames(6), waveform=tone(0.5))
    strange.write_bytes(strange.read_bytes().replace(b"avc1", b"zzzz"))
    assert "codec of its video stream" in refusal(client, [url("video", "video/mp4", strange.read_bytes()), text("?")])
    assert "max_new_tokens" in refusal(client, "Hi", max_tokens=10**9)
    assert "temperature" in refusal(client, "Hi", temperature=-1.0)
    assert "frequency_penalty" in refusal(client, "Hi", frequency_penalty=0.5)
    assert "must be the user's" in refusal(client, [{"role": "assistant", "content": "Hi"}])
    too_large = httpx.post(f"{address}/v1/chat/completions", content=b" " * (5 * 2**20))
    assert too_large.status_code == 413 and "4,194,304 bytes" in too_large.json()["error"]["message"]


def png_bomb(side: int) -> bytes:
    """A real PNG of one bit a pixel: 17 kB hold 144 million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packed, line = zlib.compressobj(9), bytes(1 + side // 8)
    rows = b"".join(packed.compress(line * 100) for _ in range(side // 100)) + packed.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def silent_opus(hours: float) -> bytes:
    """A real Opus file; all its packets of 120 ms have the same content."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=48_000, layout="mono", options={"frame_duration": "120", "b": "500"})
        frame, packets = av.AudioFrame.from_ndarray(np.zeros((1, 5760), np.int16), "s16", "mono"), []
        frame.sample_rate, frame.pts = 48_000, 0
        while not packets:
            packets = stream.encode(frame)
            frame.pts += 5760
        for index in range(round(hours * 3600 / 0.12)):
            packets[0].pts = packets[0].dts = index * 5760
            out.mux(packets[0])
    return file.getvalue()


def peak_of_workers() -> int:
    """Returns the most memory that a process of the server's pool has used so far, in bytes."""
    found = [Path(f"/proc/{child.pid}/status").read_text() for child in multiprocessing.active_children()]
    return max(int(status.split("VmHWM:")[1].split()[0]) * 1024 for status in found)


def test_bombs_are_refused_at_once(client, address):
    ask(client, [url("image", "image/png", png(40, 30)), text("?")])  # starts the worker
    before, began = peak_of_workers(), time.monotonic()
    assert "144,000,000 pixels" in refusal(client, [url("image", "image/png", png_bomb(12_000)), text("?")])
    assert "decompression bomb" in refusal(client, [url("image", "image/png", png_bomb(40_000)), text("?")])
    with pytest.raises(openai.BadRequestError, match="lasts 36,000 s; this server reads at most 60 s"):
        client.audio.transcriptions.create(model="tiny", file=("long.opus", silent_opus(10)))
    assert time.monotonic() - began < 20
    assert peak_of_workers() - before < 100 * 2**20


def pending(address: str) -> int:
    return httpx.get(f"{address}/health").json()["pending"]


def test_queue_and_cancellation(client, address, assistant):
    streams = [ask(client, "Hello there", n=4, max_tokens=900, stream=True) for _ in range(2)]
    assert pending(address) == 8
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client, "Hi")
    assert int(refused.value.response.headers["Retry-After"]) >= 1
    for stream in streams:
        stream.close()
    deadline = time.monotonic() + 300
    while pending(address) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pending(address) == 0
    answers: list[str] = []
    texts = [f"Question {index}" for index in range(4)]
    threads = [
        threading.Thread(target=lambda t=t: answers.append(t + ask(client, t).choices[0].message.content))
        for t in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [t + assistant.generate(t, max_new_tokens=12).text for t in texts]
    metrics = httpx.get(f"{address}/metrics").text
    assert 'omnivinci_responses_total{path="/v1/chat/completions",status="429"} 1.0' in metrics
