"""A cache of speech: one WAV file per voice and text."""

import hashlib
from pathlib import Path

from omnivinci_jax.paths import AnyPath, atomic_file, local_copy
from omnivinci_jax.speech.voice import Voice


def spoken_file(voice: Voice, text: str, folder: AnyPath) -> Path:
    """Returns a text's WAV file in `folder`, synthesised if missing; a local copy if `folder` is in a bucket."""
    key = hashlib.sha256(repr((voice.config, text)).encode()).hexdigest()[:32]
    path = folder / key[:2] / f"{key}.wav"
    if not path.exists():
        from scipy.io import wavfile  # here, because it is slow to import

        sound = voice.say(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as part:
            wavfile.write(part, sound.rate, sound.waveform)
    return local_copy(path)
