"""Limits of a model: requests and tokens a minute."""

import asyncio
import time


class Limiter:
    """Spaces requests evenly. Tokens are known after a request; they delay the next ones."""

    def __init__(self, requests_per_minute: float, tokens_per_minute: float):
        self._request_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_seconds = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._tokens_free = 0.0

    async def wait(self) -> None:
        """Returns when the next request may start."""
        now = time.monotonic()
        start = max(now, self._next_request, self._tokens_free)
        self._next_request = start + self._request_seconds
        if start > now:
            await asyncio.sleep(start - now)

    def used(self, tokens: int) -> None:
        """Accounts for the tokens of a request."""
        self._tokens_free = max(time.monotonic(), self._tokens_free) + tokens * self._token_seconds
