"""An answer read aloud while it is being written."""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import soundfile

from omnivinci_jax.paths import atomic_file
from omnivinci_jax.speech.voice import Sound, Voice, speak


def read_aloud(voice: Voice, pieces: Iterable[str], path: Path) -> Generator[str]:
    """Passes the pieces of a text on; a thread says each sentence into a WAV file as soon as it is whole.

    The file is there when the iterator is exhausted or closed; a text without a word makes none.

    Raises:
        UserError: what the voice cannot say, when the text has ended.
    """
    heard = SimpleQueue()
    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(_write, speak(voice, iter(heard.get, None)), path)
        try:
            for piece in pieces:
                heard.put(piece)
                yield piece
        finally:
            heard.put(None)
            written.result()


def _write(sounds: Iterator[Sound], path: Path) -> None:
    first = next(sounds, None)
    if first is None:
        return
    with (
        atomic_file(path) as part,
        soundfile.SoundFile(part, "w", first.rate, 1, "PCM_16", format="WAV") as file,
    ):
        file.write(first.waveform)
        for sound in sounds:
            file.write(sound.waveform)
