from pathlib import Path

import pytest

from tests.media.files import numbered_frames, tone, write_video


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Six seconds at 12 fps with a keyframe every 8 frames and a tone that starts at 1 s, in several containers."""
    folder = tmp_path_factory.mktemp("clips")
    frames = numbered_frames(72)
    h264 = {"codec": "libx264", "codec_options": {"g": "8", "bf": "2", "x264-params": "open-gop=1:scenecut=0"}}
    vp9 = {"codec": "libvpx-vp9", "codec_options": {"g": "8", "cpu-used": "8", "deadline": "realtime"}}
    hevc = {"codec": "libx265", "codec_options": {"x265-params": "keyint=8:log-level=none"}}
    aac = {"sampling_rate": 16_000, "audio_codec": "aac"}
    write_video(folder / "h264.mp4", frames, fps=12, waveform=tone(6, 1), **h264, **aac)
    write_video(folder / "h264.mkv", frames, fps=12, waveform=tone(6, 1), **h264, **aac)
    write_video(folder / "h264.ts", frames, fps=12, waveform=tone(6, 1), **h264, **aac)
    write_video(folder / "hevc.mp4", frames, fps=12, waveform=tone(6, 1), **hevc, **aac)
    opus = {"waveform": tone(6, 1, 48_000), "sampling_rate": 48_000, "audio_codec": "libopus"}
    write_video(folder / "vp9.webm", frames, fps=12, **vp9, **opus)
    mp3 = {"waveform": tone(6, 1, 44_100), "sampling_rate": 44_100, "audio_codec": "libmp3lame"}
    write_video(folder / "h264.avi", frames, fps=12, **h264, **mp3)
    write_video(folder / "front.mp4", frames, fps=12, waveform=tone(6), container_options={"movflags": "faststart"})
    return folder
