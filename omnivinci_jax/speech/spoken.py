"""Speech that is kept: what a voice has said once is a file, found by voice and text."""

import hashlib
from pathlib import Path

from scipy.io import wavfile

from omnivinci_jax.paths import AnyPath, atomic_file, local_copy
from omnivinci_jax.speech.voice import Voice


def spoken_file(voice: Voice, text: str, folder: AnyPath) -> Path:
    """A WAV file of a text in `folder`, said now if it is not there; where that is a bucket, a copy on this machine."""
    key = hashlib.sha256(repr((voice.config, text)).encode()).hexdigest()[:32]
    path = folder / key[:2] / f"{key}.wav"
    if not path.exists():
        sound = voice.say(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as part:
            wavfile.write(part, sound.rate, sound.waveform)
    return local_copy(path)
