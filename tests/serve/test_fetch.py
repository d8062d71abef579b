"""Downloads: only from public addresses, also after redirects, and within a size."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from omnivinci_jax.errors import MediaError
from omnivinci_jax.serve import fetch

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "2002:7f00:1::",
    "64:ff9b::7f00:1",
]  # fmt: skip


def test_public_addresses():
    assert [address for address in PRIVATE if fetch.is_public(address)] == []
    assert all(map(fetch.is_public, ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")))


class _Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        self.wfile.write(b"x" * 1000)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def address(monkeypatch) -> Iterator[str]:
    """A server at the name `public.test`, which counts as public; `private.test` leads to 127.0.0.1 as well."""
    with ThreadingHTTPServer(("127.0.0.2", 0), _Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hosts = {"public.test": "127.0.0.2", "private.test": "127.0.0.1"}
        resolve = socket.getaddrinfo
        monkeypatch.setattr(
            fetch.socket, "getaddrinfo", lambda host, *args, **named: resolve(hosts.get(host, host), *args, **named)
        )
        known = fetch.is_public
        monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.2" or known(address))
        yield f"http://public.test:{server.server_port}"
        server.shutdown()


def refusal(url: str) -> str:
    with pytest.raises(MediaError) as raised:
        fetch.download(url, 1000)
    return str(raised.value)


def test_downloads_and_refuses(address):
    assert fetch.download(f"{address}/file", 1000) == b"x" * 1000
    assert fetch.download(f"{address}/to?/file", 1000) == b"x" * 1000
    assert "its server answers 404" in refusal(f"{address}/none")
    with pytest.raises(MediaError, match="larger than the 999 bytes"):
        fetch.download(f"{address}/file", 999)
    for target in ("http://127.0.0.1/", "http://private.test/", "http://2130706433/"):
        assert "is a private address" in refusal(target), target
        assert "is a private address" in refusal(f"{address}/to?{target}"), target
    assert "not http:// or https://" in refusal(f"{address}/to?file:///etc/passwd")
    assert "redirects more than 5 times" in refusal(f"{address}/to?/to?/to?/to?/to?/to?/file")
    assert "there is no such host" in refusal("http://nowhere.invalid/")
    for broken in ("http://", "http://a:b/", "http://a b/", "http://[1/"):
        assert "\n" not in refusal(broken)


def test_one_of_several_addresses_is_private(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda *_, **__: found)
    assert "is a private address" in refusal("http://mixed.test/")
