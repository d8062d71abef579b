"""External speech recognisers: PocketSphinx on this machine, or a server with OpenAI's /v1/audio/transcriptions."""

import io
import json
import secrets
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soundfile
from jaxtyping import Float32

from omnivinci_jax.errors import UserError, needs_extra
from omnivinci_jax.speech.http import check_url, post

RATE = 16_000
_SEARCHED = 200  # many hypotheses of an N-best list differ only in their silences


@runtime_checkable
class Recogniser(Protocol):
    """A speech recogniser."""

    def transcribe(self, waveform: Float32[np.ndarray, " samples"], count: int = 1) -> list[str]:
        """Returns up to `count` different texts of a sound at 16 kHz, the likeliest first; "" if it hears none.

        Raises:
            ServerDown: it fails for every sound now.
            UserError: it fails for this sound.
        """
        ...


def make_recogniser(name: str, model: str = "whisper-1") -> Recogniser:
    """Makes a recogniser.

    Args:
        name: `pocketsphinx`, or the address of a server, without /v1.
        model: of a server.

    Raises:
        UserError: it is neither, or PocketSphinx is not installed.
    """
    if name == "pocketsphinx":
        with needs_extra("asr"):
            return PocketSphinx()
    return RecognitionServer(name, model)


class PocketSphinx:
    """PocketSphinx with the English model of its package."""

    def __init__(self):
        from pocketsphinx import Decoder

        self._decoder: Any = Decoder(samprate=RATE, loglevel="FATAL")

    def transcribe(self, waveform: Float32[np.ndarray, " samples"], count: int = 1) -> list[str]:
        """See `Recogniser`."""
        decoder = self._decoder
        samples = (np.clip(waveform, -1, 1) * 32767).astype("<i2")
        decoder.reinit_feat()  # forgets the level of the sound before
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        if best is None:
            return [""]
        return list(islice(dict.fromkeys([best.hypstr, *self._others(count)]), count))

    def _others(self, count: int) -> Iterator[str]:
        if count > 1:
            for hypothesis in islice(self._decoder.nbest(), _SEARCHED):
                if hypothesis is None:
                    return
                yield hypothesis.hypstr


class RecognitionServer:
    """A server; it has no N-best list, so it returns one text."""

    def __init__(self, url: str, model: str):
        """Raises UserError if the URL is not an HTTP address."""
        check_url(url, "recogniser")
        self._url, self._model = f"{url.rstrip('/')}/v1/audio/transcriptions", model

    def transcribe(self, waveform: Float32[np.ndarray, " samples"], count: int = 1) -> list[str]:
        """See `Recogniser`."""
        file, boundary = io.BytesIO(), secrets.token_hex(16)
        soundfile.write(file, waveform, RATE, "PCM_16", format="WAV")
        fields = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{self._model}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="sound.wav"\r\n'
            "Content-Type: audio/wav\r\n\r\n"
        )
        body = fields.encode() + file.getvalue() + f"\r\n--{boundary}--\r\n".encode()
        answer = post(self._url, body, f"multipart/form-data; boundary={boundary}", "recogniser")
        try:
            return [str(json.loads(answer)["text"]).strip()]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self._url}: its answer has no text: {answer[:80]!r}") from None
