"""A connection to the MQTT broker: the only module that knows paho, but for its buffer.

paho reads and writes in our event loop, so that one process can have hundreds of connections; only to
connect takes a thread, because looking up a name blocks.  Whatever happens becomes an event in a queue.
Many messages are taken in at once, else a loop with other work falls behind what its connections bring.
Nothing is queued for a broker that is away: retained state is published again by its owner after each
`Up`, so an old copy can never overtake a new one.
"""

import asyncio
import logging
import random
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from shoal import wire
from shoal.bell import Bell
from shoal.broker_url import parse_url
from shoal.buffered import BufferedClient
from shoal.errors import ConfigError, WireError
from shoal.messages import Message
from shoal.records import BoardId
from shoal.wire import Envelope

log = logging.getLogger(__name__)

KEEPALIVE_S: Final = 5
LOOK_S: Final = 1.0
"""So often it is looked whether the broker still answers."""
STOP_S: Final = 0.5
MAX_EVENTS: Final = 10_000
READ_BYTES: Final = 4096
"""So much of one connection, 40 heartbeats or one large message, is taken in before all else has its turn."""
MAX_OWN: Final = 256
"""Of so many of our own messages it is known that they are still to come back."""
MAX_TOLD: Final = 1000
"""Of so many topics at most it is said that messages were refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """The broker is there and all that it retained for us has arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """The broker is gone; reconnecting goes on by itself."""

    reason: str


Event = Up | Down | Envelope


class Mqtt:
    """A client of one cluster on one broker.  Make it inside a running event loop."""

    def __init__(
        self,
        url: str,
        cluster: str,
        name: str,
        *,
        filters: tuple[str, ...],
        will: Message | None = None,
        will_board: BoardId | None = None,
        strangers: Mapping[str, Callable[[bytes], None]] | None = None,
        keepalive_s: int = KEEPALIVE_S,
        deaf_to_own: bool = False,
    ) -> None:
        """Prepare a client called `name` that will subscribe to `filters` at each connection.

        `strangers` are topics that are not ours, such as that of a power meter: what comes there goes to
        its function.  `deaf_to_own`: what we publish is not read when it comes back, unless it was kept.
        """
        self.url = parse_url(url)
        self.events: asyncio.Queue[Event] = asyncio.Queue(MAX_EVENTS)
        self.refused = 0
        """Messages that did not keep to the protocol, or came while the queue was full."""
        self._cluster, self._keepalive_s = cluster, keepalive_s
        self._strangers = dict(strangers or {})
        self._filters = (*filters, *self._strangers)
        self._fence = f"shoal/fence/{cluster}-{name}-{secrets.token_hex(4)}"
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._living: asyncio.Task[None] | None = None
        self._gone = Bell()
        """The connection has ended."""
        self._urgent = Bell()
        """Something has come that is not to wait, see `batch`."""
        self._own: deque[tuple[str, bytes]] | None = deque(maxlen=MAX_OWN) if deaf_to_own else None
        """What we have published and has not come back."""
        self._reads_on = False
        """More of what has come is taken in at the next turn of the loop."""
        self._tokens: dict[bytes, asyncio.Future[None]] = {}
        self._unsubscribed: asyncio.Future[None] = self._loop.create_future()
        self._stopping = False
        self._missed = False
        """The broker could not be reached, and that has been said."""
        self._told: set[str] = set()
        """Topics from which a message was refused, of each of which that has been said."""
        self._up = False
        self._client = BufferedClient(
            CallbackAPIVersion.VERSION2,
            client_id=f"{cluster}-{name}-{secrets.token_hex(4)}",
            protocol=paho.MQTTv311,
            clean_session=True,
        )
        if self.url.user:
            self._client.username_pw_set(self.url.user, self.url.password)
        if will is not None:
            topic = wire.topic(cluster, type(will), will_board)
            self._client.will_set(topic, wire.encode(will), qos=1, retain=True)
        self._client.max_queued_messages_set(1000)
        # A restarted broker should not meet all boards at once, nor wait long for any.
        self._pause_s = random.uniform(0.2, 1.0)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_subscribe = self._subscribed
        self._client.on_unsubscribe = lambda *_what: self._all_unsubscribed()
        self._client.on_message = self._arrived
        self._client.on_socket_open = self._opened
        self._client.on_socket_close = self._closed
        self._client.on_socket_register_write = self._wants_to_write
        self._client.on_socket_unregister_write = self._has_written

    def start(self) -> None:
        """Begin to connect, and to reconnect whenever the broker goes away."""
        self._client.connect_async(self.url.host, self.url.port, self._keepalive_s)
        self._living = self._loop.create_task(self._live())

    async def stop(self) -> None:
        """Disconnect in order, so that no last will is sent.

        What still came in would make the system reset the connection, and the broker would take that for
        a loss: so nothing is left subscribed before.
        """
        self._stopping = True
        if self._up:
            self._client.unsubscribe([*self._filters, self._fence])
            await asyncio.wait((self._unsubscribed,), timeout=STOP_S)
            self._client.disconnect()
            if self._living is not None:
                await asyncio.wait((self._living,), timeout=STOP_S)
        if self._living is not None:
            self._living.cancel()
            await asyncio.gather(self._living, return_exceptions=True)

    async def _live(self) -> None:
        """Be connected, for ever."""
        failures = 0
        while not self._stopping:
            self._gone.hush()
            try:
                await asyncio.to_thread(self._client.reconnect)
            except OSError:
                self._unreached()
                failures += 1
            else:
                failures = 0
                while self._client.socket() is not None:
                    await self._gone.wait(LOOK_S)
                    self._client.loop_misc()
            if self._stopping:
                return
            await asyncio.sleep(min(2, 1 + failures) * self._pause_s)

    async def next(self, timeout_s: float | None = None) -> Event | None:
        """Return the next event; None after `timeout_s`.

        Made of asyncio.wait, because asyncio.wait_for before Python 3.12 can swallow a cancellation.
        """
        if self.events.empty():
            waiting = asyncio.ensure_future(self.events.get())
            try:
                done, _ = await asyncio.wait((waiting,), timeout=timeout_s)
            finally:
                if not waiting.done():
                    waiting.cancel()
            return waiting.result() if done else None
        return self.events.get_nowait()

    async def batch(self, timeout_s: float) -> list[Event]:
        """Return all that has come: at once if there is more than QoS 0, else after `timeout_s`.

        What may get lost on its way may wait: so a thousand heartbeats wake nobody a thousand times.
        """
        await self._urgent.wait(timeout_s)
        return self.at_hand()

    def at_hand(self) -> list[Event]:
        """Return all that has come, without waiting."""
        self._urgent.hush()
        return [self.events.get_nowait() for _ in range(self.events.qsize())]

    def publish(self, message: Message, board: BoardId | None = None) -> bool:
        """Publish where the table says; return False if the broker is away and nothing was sent."""
        route = wire.route_of(type(message))
        topic, payload = wire.topic(self._cluster, type(message), board), wire.encode(message)
        sent = self._send(topic, payload, route.qos, route.retain)
        if sent and self._own is not None:
            self._own.append((topic, payload))
        return sent

    def clear(self, kind: type[Message], board: BoardId | None = None) -> bool:
        """Clear what the broker retains of that message."""
        return self._send(wire.topic(self._cluster, kind, board), b"", 1, retain=True)

    async def sent(self, timeout_s: float) -> None:
        """Wait until the broker has what was published so far: it returns our token.

        Raises ConfigError if it does not within `timeout_s`.
        """
        back = self.ask()
        try:
            await asyncio.wait((back,), timeout=timeout_s)
            if not back.done():
                raise ConfigError(f"broker {self.url}: no answer within {timeout_s:.0f} s")
        finally:
            back.cancel()

    def ask(self) -> "asyncio.Future[None]":
        """Ask the broker for a sign of life, and return what is done once it has come.

        It comes through the broker as all else does: what was published there before is in `events` then.
        Cancel it when nobody waits for it any more; if the broker is away it never comes.
        """
        token = secrets.token_bytes(8)
        back = self._tokens[token] = self._loop.create_future()
        back.add_done_callback(lambda _: self._tokens.pop(token, None))
        self._send(self._fence, token, 1, retain=False)
        return back

    def _put(self, event: Event) -> None:
        try:
            self.events.put_nowait(event)
        except asyncio.QueueFull:
            self.refused += 1
        if not isinstance(event, Envelope) or event.route.qos:
            self._urgent.ring()

    def _all_unsubscribed(self) -> None:
        if not self._unsubscribed.done():
            self._unsubscribed.set_result(None)

    def _token_back(self, token: bytes) -> None:
        waiting = self._tokens.get(token)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _send(self, topic: str, payload: bytes, qos: int, retain: bool) -> bool:
        if not self._up:
            return False
        info = self._client.publish(topic, payload, qos, retain)
        return info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def _unreached(self) -> None:
        if not self._missed and not self._stopping:
            self._missed = True
            self._put(Down(reason="cannot be reached"))

    # What paho calls.  A connection is opened, and messages are published, by other threads too.

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Have the event loop call `function` soon."""
        if threading.get_ident() == self._thread:
            self._loop.call_soon(function, *arguments)
            return
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("event loop closed; dropped %r", arguments)

    def _opened(self, _client: paho.Client, _user: object, sock: object) -> None:
        self._client.begin_anew()
        if isinstance(sock, socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # messages are small, and not to wait
            self._call(self._read_from, sock)

    def _read_from(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0 and not self._stopping:
            self._loop.add_reader(sock, self._read)

    def _read(self) -> None:
        """Take in what has come, as far as others do not have to wait for it."""
        self._client.left = READ_BYTES
        while (
            self._client.left > 0
        ):  # one call may take many messages, or none of a connection that has ended
            self._client.loop_read()
            if not self._client.holds_more():
                return
        if not self._reads_on:
            self._reads_on = True
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._reads_on = False
        self._read()

    def _closed(self, _client: paho.Client, _user: object, sock: object) -> None:
        if isinstance(sock, socket.socket) and not self._loop.is_closed():
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)

    def _wants_to_write(self, _client: paho.Client, _user: object, _sock: object) -> None:
        self._call(self._write)

    def _write(self) -> None:
        """Write what the system takes at once, and the rest when it takes more."""
        if self._stopping and not self._up:
            return  # whoever greets the broker and goes would be lost, by its will
        self._client.loop_write()
        sock = self._client.socket()
        if isinstance(sock, socket.socket) and self._client.want_write():
            self._loop.add_writer(sock, self._client.loop_write)

    def _has_written(self, _client: paho.Client, _user: object, sock: object) -> None:
        if isinstance(sock, socket.socket) and sock.fileno() >= 0:
            self._loop.remove_writer(sock)

    def _connected(
        self, client: paho.Client, _user: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            self._put(Down(reason=f"refused: {reason}"))
            return
        self._up, self._missed = True, False
        client.subscribe([(name, 1) for name in (*self._filters, self._fence)])

    def _subscribed(self, client: paho.Client, *_rest: object) -> None:
        client.publish(self._fence, b"", 1)

    def _disconnected(
        self, _client: paho.Client, _user: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        self._up, self._missed = False, True
        if self._own is not None:
            self._own.clear()
        self._gone.ring()
        if not self._stopping:
            self._put(Down(reason=str(reason)))

    def _arrived(self, _client: paho.Client, _user: object, message: paho.MQTTMessage) -> None:
        topic, payload = message.topic, bytes(message.payload)
        if topic == self._fence:
            self._token_back(payload) if payload else self._put(Up())
            return
        if topic in self._strangers:
            self._strangers[topic](payload)
            return
        if self._own and not message.retain and (topic, payload) in self._own:
            self._own.remove((topic, payload))
            return
        try:
            envelope = wire.decode(topic, payload, retained=message.retain)
        except WireError as error:
            self._refuse(topic, error)
            return
        self._put(envelope)

    def _refuse(self, topic: str, error: WireError) -> None:
        """Count a message that is none, and say so once for each topic: who sends one sends more."""
        self.refused += 1
        if topic not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(topic)
            log.warning("refused a message: %s (of this topic that is not said again)", error)
