"""Ten hours of sound take no more memory than the sound that the model reads."""

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import soundfile

from tests.tiny import REPOSITORY

_HOURS, _RATE, _FRAME = 10, 16_000, 4_608
# Measures a file as `index` does, and reads it as `check` and `train` do.
_PROGRAM = """
import sys
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.processor import MediaReader
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from tests.memory import peak_megabytes
reader = MediaReader(OmniVinciConfig(max_sound_seconds=60.0))
for path in sys.argv[1:]:
    question = Conversation((Message("user", (Media("sound", path),)),))
    before = peak_megabytes()
    (size,) = reader.measure(question)
    (loaded,), _, windows = reader.load(question)
    print(size.seconds, loaded.seconds, len(windows), peak_megabytes() - before)
"""


def _write_long_flac(path):
    """Repeats one silent packet, for three hours."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("flac", rate=_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, _FRAME), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = _RATE, 0, Fraction(1, _RATE)
        data = bytes((stream.encode(frame) + stream.encode())[0])
        for index in range(3 * 3600 * _RATE // _FRAME):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, _RATE)
            packet.pts = packet.dts = index * _FRAME
            packet.duration = _FRAME
            container.mux(packet)
    return path


def _write_long_wav(path):
    """Writes a header and a hole, which takes no room on the disk."""
    soundfile.write(path, np.zeros(0), _RATE, subtype="PCM_16")
    size = _HOURS * 3600 * _RATE * 2
    header = bytearray(path.read_bytes())[:44]
    header[4:8], header[40:44] = (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(44 + size)
    return path


def test_memory_does_not_grow_with_the_file(tmp_path):
    files = [_write_long_wav(tmp_path / "a.wav"), _write_long_flac(tmp_path / "a.mka")]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, files)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        measured, loaded, windows, megabytes = map(float, line.split())
        assert (measured, loaded, windows) == (60.0, 60.0, 2)
        assert megabytes < 120  # a minute takes 4 MB decoded, ten hours 2,300 MB
    assert len(done.stdout.splitlines()) == 2
