"""A client of MQTT 3.1.1 that does as little as can be, so that a thousand of them cost little.

It keeps no queue, waits for no acknowledgement and does not connect again: whoever plays with it sees to it
that the broker is there.  What agents and coordinators use is `shoal.mqtt`.
"""

import asyncio
from collections.abc import Callable
from typing import Final

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 0x10, 2, 3, 0x40, 0x82, 9
KEEPALIVE_S: Final = 5
"""As in `shoal.mqtt`."""

Hear = Callable[[str, bytes], None]


def packet(first: int, body: bytes) -> bytes:
    """Return a packet: its first byte, its length, and what is in it."""
    size, length = len(body), bytearray()
    while True:
        size, low = divmod(size, 128)
        length.append(low | (128 if size else 0))
        if not size:
            return bytes((first,)) + bytes(length) + body


def text(words: str | bytes) -> bytes:
    """Return a string as MQTT has them."""
    content = words.encode() if isinstance(words, str) else words
    return len(content).to_bytes(2, "big") + content


class Thin(asyncio.Protocol):
    """A connection; `hear` is called with topic and payload of what comes, once it is `up`."""

    def __init__(
        self, name: str, *, filters: tuple[str, ...], hear: Hear, will: tuple[str, bytes] | None
    ) -> None:
        """Prepare to be `name` at the broker; a will is retained there.  Without one, it may be silent."""
        self.up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the broker has taken the subscriptions."""
        self._hear = hear
        self._came = bytearray()
        self._transport: asyncio.Transport
        flags, left = (0b101110, text(will[0]) + text(will[1])) if will else (0b10, b"")
        keepalive = (KEEPALIVE_S if will else 0).to_bytes(2, "big")
        self._greeting = packet(CONNECT, text("MQTT") + bytes((4, flags)) + keepalive + text(name) + left)
        wanted = b"".join(text(each) + b"\x01" for each in filters)
        self._wishes = packet(SUBSCRIBE, b"\x00\x01" + wanted)

    async def connect(self, host: str, port: int) -> None:
        """Connect, and return once subscribed; ConnectionError if the broker does not want us."""
        await asyncio.get_running_loop().create_connection(lambda: self, host, port)
        await self.up

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        """Hand a message to the system; once cut, do nothing."""
        identifier = b"\x00\x02" if qos else b""  # nobody looks which one is acknowledged
        first = PUBLISH << 4 | qos << 1 | retain
        if not self._transport.is_closing():
            self._transport.write(packet(first, text(topic) + identifier + payload))

    def cut(self) -> None:
        """End as by a power cut: the broker finds the connection gone, and sends the will."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the broker."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits to be connected."""
        if not self.up.done():
            self.up.set_exception(ConnectionError(f"the broker went: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Take in all packets that are whole."""
        self._came += data
        at = 0
        while (found := self._whole(at)) is not None:
            start, stop = found
            self._take(self._came[at], bytes(self._came[start:stop]))
            at = stop
        del self._came[:at]

    def _whole(self, at: int) -> tuple[int, int] | None:
        """Return where the body of the packet at `at` starts and stops; None: it has not come yet."""
        length = shift = 0
        for place in range(at + 1, len(self._came)):
            byte = self._came[place]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                stop = place + 1 + length
                return (place + 1, stop) if stop <= len(self._came) else None
        return None

    def _take(self, first: int, body: bytes) -> None:
        kind = first >> 4
        if kind == CONNACK:
            if body[1]:
                self.up.set_exception(ConnectionError(f"the broker refused us: code {body[1]}"))
            else:
                self._transport.write(self._wishes)
        elif kind == SUBACK:
            self.up.set_result(None)
        elif kind == PUBLISH:
            end = 2 + int.from_bytes(body[:2], "big")
            topic = body[2:end].decode()
            if first & 0b110:
                self._transport.write(packet(PUBACK, body[end : end + 2]))
                end += 2
            self._hear(topic, body[end:])
