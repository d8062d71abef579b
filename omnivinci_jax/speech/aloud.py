"""Reads an answer aloud while it is generated."""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import soundfile

from omnivinci_jax.paths import atomic_file
from omnivinci_jax.speech.voice import Sound, Voice, speak


def read_aloud(voice: Voice, pieces: Iterable[str], path: Path) -> Generator[str]:
    """Yields the pieces of a text; a thread speaks each complete sentence into a WAV file.

    The file appears when the iterator is exhausted or closed; a text without words writes no file.

    Raises:
        UserError: the voice failed; raised when the text has ended.
    """
    queue = SimpleQueue()
    with ThreadPoolExecutor(1) as thread:
        writer = thread.submit(_write, speak(voice, iter(queue.get, None)), path)
        try:
            for piece in pieces:
                queue.put(piece)
                yield piece
        finally:
            queue.put(None)
            writer.result()


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
