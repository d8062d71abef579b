"""Asks the server over HTTP, patiently; what it cannot answer is a failure, never an empty answer."""

import time
from typing import Any

import httpx


class Failed(Exception):
    """The server refused a question, or broke off its answer; one line says why."""


class ServerDown(Exception):
    """The server did not answer at all: asking it more questions is in vain."""


class Client:
    """A client of /v1/chat/completions that threads can share.

    Args:
        base_url: of the server, with or without /v1.
        timeout: seconds of a request.
        tries: requests until a server that is down, busy or broken is given up.
    """

    def __init__(self, base_url: str, timeout: float = 600, tries: int = 6):
        self.url = base_url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._tries = tries
        self._http = httpx.Client(timeout=httpx.Timeout(timeout, connect=10), limits=httpx.Limits(max_connections=None))

    def ask(self, body: dict[str, Any]) -> str:
        """Returns the answer; raises Failed or ServerDown."""
        for attempt in range(1, self._tries + 1):
            last = attempt == self._tries
            wait = 2.0 ** min(attempt - 1, 5)
            try:
                response = self._http.post(self.url, json=body)
            except httpx.TransportError as error:
                if last:
                    raise ServerDown(f"{self.url}: {error or type(error).__name__} ({attempt} tries)") from None
            else:
                if response.status_code == 200:
                    return response.json()["choices"][0]["message"]["content"]
                if response.status_code not in (429, 500, 502, 503) or last:
                    raise Failed(f"{response.status_code}: {_reason(response)}")
                wait = float(response.headers.get("Retry-After", wait))
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")


def _reason(response: httpx.Response) -> str:
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
