"""Text to speech: `make_voice` returns a back end; `speak` and `read_aloud` speak a text while it is generated."""

from omnivinci_jax.speech.aloud import read_aloud
from omnivinci_jax.speech.backends import make_voice, voice_or_server
from omnivinci_jax.speech.spoken import spoken_file
from omnivinci_jax.speech.voice import Sound, Voice, speak

__all__ = ["Sound", "Voice", "make_voice", "read_aloud", "speak", "spoken_file", "voice_or_server"]
