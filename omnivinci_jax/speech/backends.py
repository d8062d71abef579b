"""The speech back ends that a configuration can name."""

from omnivinci_jax.settings import VoiceConfig
from omnivinci_jax.speech.espeak import Espeak
from omnivinci_jax.speech.server import Server
from omnivinci_jax.speech.voice import Voice

BACKENDS = {"espeak-ng": Espeak, "server": Server}


def voice_or_server(voice: str, url: str, model: str) -> Voice:
    """Makes the voice of a server if `url` is given, else of espeak-ng; for the error see `make_voice`."""
    return make_voice(VoiceConfig("server" if url else "espeak-ng", voice, url, model))


def make_voice(config: VoiceConfig) -> Voice:
    """Makes the voice of a configuration; raises UserError if its back end is not available."""
    return BACKENDS[config.backend](config)
