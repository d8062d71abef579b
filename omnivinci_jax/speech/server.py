"""Any server with OpenAI's /v1/audio/speech API."""

import json
import os
import urllib.error
import urllib.request

from omnivinci_jax.errors import UserError
from omnivinci_jax.settings import VoiceConfig
from omnivinci_jax.speech.voice import Sound, read_sound

_TIMEOUT_SECONDS = 120


class Server:
    """A server as a `Voice`; sends the key in OPENAI_API_KEY, if set."""

    def __init__(self, config: VoiceConfig):
        """Raises UserError if the URL is not an HTTP address."""
        if not config.url.startswith(("http://", "https://")):
            raise UserError(f"the url of the speech server is {config.url!r}: give http://HOST:PORT")
        self.config = config

    def say(self, text: str) -> Sound:
        """See `Voice`."""
        config, url = self.config, f"{self.config.url.rstrip('/')}/v1/audio/speech"
        body = {"model": config.model, "input": text, "voice": config.voice or "alloy", "response_format": "wav"}
        headers = {"Content-Type": "application/json"}
        if "OPENAI_API_KEY" in os.environ:
            headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
                return read_sound(response.read(), url)
        except urllib.error.HTTPError as error:
            raise UserError(f"{url}: {error.code} {error.reason}: {error.read(200).decode(errors='replace')}") from None
        except OSError as error:
            raise UserError(f"{url}: the speech server does not answer ({error})") from None
