"""Where the broker is: the URL that operators give, and our own address as the broker sees it."""

import socket
import urllib.parse
from dataclasses import dataclass
from typing import Final

from shoal.errors import ConfigError

DEFAULT_PORT: Final = 1883


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUrl:
    """Where the broker is, and who we are there."""

    host: str
    port: int
    user: str | None
    password: str | None

    def __str__(self) -> str:
        return f"mqtt://{self.host}:{self.port}"


def parse_url(url: str) -> BrokerUrl:
    """Return the parts of `mqtt://[user:password@]host[:port]`; else ConfigError."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError:
        port = 0
    if parts.scheme != "mqtt" or not parts.hostname or not port or parts.path.strip("/") or parts.query:
        raise ConfigError(f"broker: expected mqtt://HOST[:PORT], got {url!r}")
    return BrokerUrl(host=parts.hostname, port=port, user=parts.username, password=parts.password)


def address_towards(url: str) -> str:
    """Return the address of this machine that a broker sees; no packet is sent.

    Raises ConfigError if there is no way to the broker.
    """
    broker = parse_url(url)
    try:
        found = socket.getaddrinfo(broker.host, broker.port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except socket.gaierror as error:
        raise ConfigError(f"broker {broker}: there is no host called {broker.host}") from error
    except OSError as error:
        raise ConfigError(f"no way to {broker.host}: {error}; give our own address with --host") from error
