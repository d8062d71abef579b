"""espeak-ng, the program of the Debian package of that name: robotic, but fast, local and deterministic."""

import shutil
import subprocess

from omnivinci_jax.errors import UserError
from omnivinci_jax.settings import VoiceConfig
from omnivinci_jax.speech.voice import Sound, read_sound


class Espeak:
    """espeak-ng as a `Voice`; voices are languages (en, de, en-us) and variants (en+f3)."""

    def __init__(self, config: VoiceConfig):
        """Raises UserError if the program is not installed."""
        if shutil.which("espeak-ng") is None:
            raise UserError("espeak-ng is not installed: apt-get install espeak-ng, or choose another speech back end")
        self.config = config

    def say(self, text: str) -> Sound:
        """See `Voice`."""
        # On standard input, in UTF-8, since a text may begin with a dash.
        command = ["espeak-ng", "--stdout", "-b", "1", "-v", self.config.voice or "en"]
        done = subprocess.run(command, input=text.encode(), capture_output=True)
        if done.returncode:
            raise UserError(f"espeak-ng -v {self.config.voice or 'en'}: {done.stderr.decode().strip()}")
        return read_sound(done.stdout, "espeak-ng")
