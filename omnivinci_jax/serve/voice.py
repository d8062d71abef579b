"""Speaks answers: by sentence while they stream, or whole."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from omnivinci_jax.speech import Voice, speak

RATE = 24_000  # of OpenAI's pcm16


class Speaker:
    """Speaks one answer in a thread; give it text with `add`, then call `end`, and read `sounds`."""

    def __init__(self, voice: Voice):
        self._voice = voice
        self._texts: SimpleQueue[str | None] = SimpleQueue()
        self._sounds: asyncio.Queue = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1)
        self._done = self._thread.submit(self._speak)

    def add(self, text: str) -> None:
        """Adds more text."""
        self._texts.put(text)

    def end(self) -> None:
        """Ends the text."""
        self._texts.put(None)
        self._thread.shutdown(wait=False)

    def ready(self) -> list[Float32[np.ndarray, " n"]]:
        """Returns the sentences that are spoken, at 24 kHz; raises the voice's UserError."""
        return [self._checked(self._sounds.get_nowait()) for _ in range(self._sounds.qsize())]

    async def rest(self) -> AsyncIterator[Float32[np.ndarray, " n"]]:
        """Yields the remaining sentences after `end`."""
        while (sound := self._checked(await self._sounds.get())) is not None:
            yield sound

    def _checked(self, sound):
        if isinstance(sound, Exception):
            raise sound
        return sound

    def _speak(self) -> None:
        try:
            for sound in speak(self._voice, iter(self._texts.get, None)):
                self._put(soxr.resample(sound.waveform, sound.rate, RATE).astype(np.float32))
            self._put(None)
        except Exception as error:  # raised where the sounds are read
            self._put(error)

    def _put(self, sound) -> None:
        self._loop.call_soon_threadsafe(self._sounds.put_nowait, sound)


def encode_sound(waveform: Float32[np.ndarray, " n"], form: str) -> str:
    """Returns a sound at 24 kHz as base64 of a wav, flac or mp3 file, or of bare 16-bit samples (pcm16)."""
    if form == "pcm16":
        content = (np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes()
    else:
        file = io.BytesIO()
        subtype = "MPEG_LAYER_III" if form == "mp3" else "PCM_16"
        soundfile.write(file, waveform, RATE, subtype, format=form.upper())
        content = file.getvalue()
    return base64.b64encode(content).decode()
