"""Every kind of media becomes a part of the message, in its place."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image

from omnivinci_lmms_eval.messages import message

RED, BLUE = Image.new("RGB", (3, 2), "red"), Image.new("CMYK", (2, 2), (255, 255, 0, 0))
TONE = np.sin(np.arange(1600) * 0.1).astype(np.float32)


def content(part: dict) -> tuple[str, bytes]:
    """Returns the media type of a part's data: URL and its bytes."""
    head, data = part[part["type"]]["url"].split(",", 1)
    assert head.endswith(";base64")
    return head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(data)


def shape(text: str, media: object) -> list[str]:
    """Returns the texts of a message, and for each item its type, with the colour of images."""
    shown = []
    for part in message(text, media)["content"]:
        if part["type"] == "text":
            shown.append(part["text"])
        elif part["type"] == "image_url":
            image = Image.open(io.BytesIO(content(part)[1])).convert("RGB")
            shown.append({(255, 0, 0): "[red]", (0, 0, 255): "[blue]"}[image.getpixel((0, 0))])
        else:
            shown.append(f"[{content(part)[0]}]")
    return shown


def test_items_stand_where_the_text_has_them(tmp_path):
    (tmp_path / "a.MP4").write_bytes(b"video")
    assert shape("What?", [TONE, RED]) == ["[audio/wav]", "[red]", "What?"]  # the image is there with the sound
    assert shape("What?", [[RED], [str(tmp_path / "a.MP4")]]) == ["[red]", "[video/mp4]", "What?"]
    assert shape("First <image>, then <image>?", [RED, BLUE]) == ["First ", "[red]", ", then ", "[blue]", "?"]
    assert shape("<image 2> or <image 5>? <image 2>", [RED, BLUE]) == ["[red]", " or ", "[blue]", "? <image 2>"]
    assert shape("<image>", [RED, TONE]) == ["[audio/wav]", "[red]"]
    assert shape("What is <image> in HTML?", [RED, BLUE]) == ["[red]", "[blue]", "What is <image> in HTML?"]
    assert shape("Why <audio>?", None) == ["Why <audio>?"]


@pytest.mark.parametrize(
    "sound",
    [
        {"array": TONE, "sampling_rate": 8000},
        {"array": TONE.tolist(), "sampling_rate": 8000},
        SimpleNamespace(data=TONE[None], sample_rate=8000),
        SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=TONE[None], sample_rate=8000)),
    ],
)
def test_sounds_keep_their_samples_and_rate(sound):
    kind, data = content(message("", sound)["content"][0])
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert kind == "audio/wav" and rate == 8000 and np.array_equal(samples, TONE)


def test_sounds_of_other_forms(tmp_path):
    def samples(sound: object) -> tuple[np.ndarray, int]:
        return soundfile.read(io.BytesIO(content(message("", sound)["content"][0])[1]), dtype="float32")

    assert samples(TONE)[1] == 16000 and samples({"array": TONE, "sampling_rate": None})[1] == 16000
    stereo = np.stack([TONE, -TONE])
    assert np.array_equal(samples(stereo)[0], stereo.T) and np.array_equal(samples(stereo.T)[0], stereo.T)
    assert samples(np.array([16384, -32768], np.int16))[0].tolist() == [0.5, -1]
    path = tmp_path / "a.flac"
    soundfile.write(path, TONE, 22050)
    for sound in (path, str(path), {"path": str(path), "bytes": None}, {"path": "x.flac", "bytes": path.read_bytes()}):
        assert content(message("", sound)["content"][0]) == ("audio/flac", path.read_bytes())
    assert message("", [path], by_path=True)["content"] == [
        {"type": "audio_url", "audio_url": {"url": f"file://{path}"}}
    ]


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("none.mp4", "none.mp4: no such file"),
        ("notes.txt", "notes.txt: is no image, sound or video by its name"),
        (object(), "a media item of type object is no path, image or sound"),
        (np.zeros((2, 2, 3)), "a media item of type ndarray is no path, image or sound"),
        (np.zeros(0), "a media item of type ndarray is no path, image or sound"),
    ],
)
def test_unusable_items_are_errors(item, problem):
    with pytest.raises(ValueError, match=problem):
        message("What?", [RED, item])
