"""paho's client of MQTT with a buffer, and with a bound on what it takes in at once."""

import ssl
from typing import Final

import paho.mqtt.client as paho

RECEIVE_BYTES: Final = 1 << 16
"""So much is taken from the system at once."""


class BufferedClient(paho.Client):
    """paho's client, but with a buffer: paho asks the system for a byte or two, three times a message."""

    _came = b""
    _at = 0
    left = 0
    """Bytes that may be taken in before all else has its turn."""

    def begin_anew(self) -> None:
        """Forget what came over the connection before."""
        self._came, self._at = b"", 0

    def holds_more(self) -> bool:
        """Say whether something has come that the system will not tell of again."""
        sock = self.socket()
        hidden = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        return sock is not None and (hidden or self._at < len(self._came))

    def _sock_recv(self, bufsize: int) -> bytes:
        """Return up to `bufsize` bytes, as paho expects of the method of this name; b"" at the end."""
        if self.left <= 0:
            raise BlockingIOError
        if self._at == len(self._came):
            self._came, self._at = super()._sock_recv(RECEIVE_BYTES), 0
        piece = self._came[self._at : self._at + bufsize]
        self._at += len(piece)
        self.left -= len(piece)
        return piece
