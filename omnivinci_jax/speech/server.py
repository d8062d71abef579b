"""Any server with OpenAI's /v1/audio/speech API."""

import json

from omnivinci_jax.settings import VoiceConfig
from omnivinci_jax.speech.http import check_url, post
from omnivinci_jax.speech.voice import Sound, read_sound


class Server:
    """A server as a `Voice`; sends the key in OPENAI_API_KEY, if set."""

    def __init__(self, config: VoiceConfig):
        """Raises UserError if the URL is not an HTTP address."""
        check_url(config.url, "speech server")
        self.config = config

    def say(self, text: str) -> Sound:
        """See `Voice`."""
        config, url = self.config, f"{self.config.url.rstrip('/')}/v1/audio/speech"
        body = {"model": config.model, "input": text, "voice": config.voice or "alloy", "response_format": "wav"}
        return read_sound(post(url, json.dumps(body).encode(), "application/json", "speech server"), url)
