"""An hour of sound and 128 frames in bounded memory, which grows with the sequence, not with the files."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.media.files import numbered_frames, write_video
from tests.tiny import REPOSITORY


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """An hour of sound and 90 minutes; 130 frames, small and large."""
    folder = tmp_path_factory.mktemp("long")
    minute = (np.random.default_rng(0).uniform(-0.3, 0.3, 60 * 8_000)).astype(np.float32)
    for name, minutes in (("hour", 60), ("longer", 90)):
        with soundfile.SoundFile(folder / f"{name}.wav", "w", 8_000, 1, "PCM_U8") as file:
            for _ in range(minutes):
                file.write(minute)
    for name, height in (("small", 48), ("large", 720)):
        frames = numbered_frames(130, height, height * 4 // 3)
        write_video(folder / f"{name}.mp4", frames, fps=2.0, codec_options={"preset": "ultrafast"})
    return {path.stem: path for path in folder.iterdir()}


def peak(seconds: int, *files: Path) -> tuple[int, int]:
    """Returns the megabytes that an answer adds to peak memory, and the prompt's positions."""
    command = [sys.executable, "-m", "tests.generate.peak", str(seconds), *map(str, files)]
    # Compiled as users compile: the long prefill takes more time than its compilation.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    megabytes, positions = map(int, done.stdout.split())
    return megabytes, positions


def test_peak_memory_grows_with_the_sequence_and_not_with_the_files(files):
    whole, positions = peak(3600, files["small"], files["hour"])
    assert positions > 600 * 30  # 600 windows of 6 s, and the frames
    assert whole < 2500
    other, same = peak(3600, files["large"], files["longer"])
    assert same == positions and other < 1.15 * whole
    short, fewer = peak(600, files["large"], files["longer"])
    assert fewer < positions / 4 and short < whole / 2
