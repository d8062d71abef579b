"""Downloads http(s) URLs from public addresses only."""

import http.client
import ipaddress
import socket
import time
from urllib.parse import urljoin, urlsplit

from omnivinci_jax.errors import MediaError, printable

_TIMEOUT_SECONDS = 30
_MAX_REDIRECTS = 5
_BLOCK = 2**16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # holds an IPv4 address in its last 32 bits


def is_public(address: str) -> bool:
    """Returns whether an IP address is on the public internet; looks into addresses that wrap an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast


def download(url: str, max_bytes: int) -> bytes:
    """Returns the content of a URL; checks the address that it connects to, also after each redirect.

    Raises:
        MediaError: the address is private, the file too large, or the server does not answer with a file.
    """
    started, where = time.monotonic(), printable(url)[:200]
    for _ in range(_MAX_REDIRECTS + 1):
        connection, target = _connection(url, where)
        try:
            connection.request("GET", target, headers={"User-Agent": "omnivinci", "Accept-Encoding": "identity"})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308) and response.headers["Location"]:
                url = urljoin(url, response.headers["Location"])
                continue
            if response.status != 200:
                raise MediaError(f"{where}: its server answers {response.status} {response.reason}")
            content = bytearray()
            while block := response.read(_BLOCK):
                content += block
                if len(content) > max_bytes:
                    raise MediaError(f"{where}: is larger than the {max_bytes:,} bytes that this server reads")
                if time.monotonic() - started > _TIMEOUT_SECONDS:
                    raise MediaError(f"{where}: takes longer than {_TIMEOUT_SECONDS} s to download")
            return bytes(content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"{where}: cannot be downloaded ({type(error).__name__})") from None
        finally:
            connection.close()
    raise MediaError(f"{where}: redirects more than {_MAX_REDIRECTS} times")


def _connection(url: str, where: str) -> tuple[http.client.HTTPConnection, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise MediaError(f"{where}: is not a URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise MediaError(f"{where}: leads to an address that is not http:// or https://")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kind = _PublicHTTPS if parts.scheme == "https" else _PublicHTTP
    try:
        return kind(host, port or kind.default_port, timeout=_TIMEOUT_SECONDS), target
    except http.client.InvalidURL:
        raise MediaError(f"{where}: is not a URL") from None


def _connect(host: str, port: int) -> socket.socket:
    """Connects to one of the addresses that it has checked: a second look-up could give others."""
    try:
        found = [info[4] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise MediaError(f"{host}: there is no such host") from None
    for address in found:
        if not is_public(str(address[0])):
            raise MediaError(f"{host}: is a private address; this server reads public URLs only")
    return socket.create_connection((str(found[0][0]), port), _TIMEOUT_SECONDS)


class _PublicHTTP(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = _connect(self.host, self.port)


class _PublicHTTPS(http.client.HTTPSConnection):
    def connect(self) -> None:
        self.sock = self._context.wrap_socket(  # pyright: ignore[reportAttributeAccessIssue]
            _connect(self.host, self.port), server_hostname=self.host
        )
