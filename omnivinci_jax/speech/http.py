"""Requests to servers with OpenAI's API."""

import os
import urllib.error
import urllib.request

from omnivinci_jax.errors import UserError

_TIMEOUT_SECONDS = 120


class ServerDown(UserError):
    """The server does not answer, or not now: more requests would fail too."""


def check_url(url: str, what: str) -> None:
    """Raises UserError if the URL of a server is not an HTTP address."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"the url of the {what} is {url!r}: give http://HOST:PORT")


def post(url: str, body: bytes, content_type: str, what: str) -> bytes:
    """Posts a body, with the key in OPENAI_API_KEY if set; returns the answer.

    Args:
        url, body, content_type: of the request.
        what: names the server in errors.

    Raises:
        ServerDown: there is no answer, or it is 429 or 5xx.
        UserError: the server refuses the request.
    """
    headers = {"Content-Type": content_type}
    if "OPENAI_API_KEY" in os.environ:
        headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=_TIMEOUT_SECONDS) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        kind = ServerDown if error.code == 429 or error.code >= 500 else UserError
        raise kind(f"{url}: {error.code} {error.reason}: {error.read(200).decode(errors='replace')}") from None
    except OSError as error:
        raise ServerDown(f"{url}: the {what} does not answer ({error})") from None
