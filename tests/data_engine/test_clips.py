"""What the models get of a clip: its frames with their times, a video without sound, or its sound."""

import base64
import io

import soundfile

from omnivinci_jax.data_engine.clips import frames_of, muted_video_of, probe, segment_spans, sound_of
from omnivinci_jax.media import decode
from tests.data_engine.answering import grey


def test_a_clip_is_shown_as_frames_as_a_muted_video_and_as_sound(videos, tmp_path):
    path = videos / "a.mp4"  # five frames a second; its grey level rises from 40 to 50 at 2 s
    probed = probe(path)
    assert probed["keyframes"] == [0, 1, 2, 3] and probed["levels"] == [-9] * 4
    assert segment_spans(probed, 2.0, 1.0)[0] == {"start": 0, "end": 2, "clips": [[0, 1], [1, 2]]}

    parts = frames_of(path, ("x",), [2.0, 3.0], 3, 32).load()
    assert [part["text"] for part in parts[::2]] == ["0.0 s:", "0.4 s:", "0.8 s:"]
    assert [grey(part) for part in parts[1::2]] == [50] * 3

    (part,) = muted_video_of(path, ("x",), [1.0, 3.0]).load()
    header, _, data = part["video_url"]["url"].partition(",")
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(base64.b64decode(data))
    info = decode.probe_video(clip)
    assert header == "data:video/mp4;base64" and len(info.frame_times) == 10 and info.audio_seconds == 0

    (part,) = sound_of(path, ("x",), [1.0, 2.0]).load()
    waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
    assert (len(waveform), rate) == (16_000, 16_000) and 0.49 < abs(waveform).max() < 0.52
