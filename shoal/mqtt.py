"""A connection to the MQTT broker: the only module that knows paho.

paho runs in its own thread; whatever happens there becomes an event in an asyncio queue at once.
Nothing is queued for a broker that is away: retained state is published again by its owner after each
`Up`, so an old copy can never overtake a new one.
"""

import asyncio
import logging
import random
import secrets
import socket
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from shoal import wire
from shoal.errors import ConfigError, WireError
from shoal.messages import Message
from shoal.records import BoardId
from shoal.wire import Envelope

log = logging.getLogger(__name__)

KEEPALIVE_S: Final = 5
STOP_S: Final = 0.5
DEFAULT_PORT: Final = 1883
MAX_EVENTS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """The broker is there and all that it retained for us has arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """The broker is gone; reconnecting goes on by itself."""

    reason: str


Event = Up | Down | Envelope


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
    ) -> None:
        """Prepare a client called `name` that will subscribe to `filters` at each connection.

        `strangers` are topics that are not ours, such as that of a power meter: what comes there goes to
        its function, in another thread.
        """
        self.url = parse_url(url)
        self.events: asyncio.Queue[Event] = asyncio.Queue(MAX_EVENTS)
        self.refused = 0
        """Messages that did not keep to the protocol, or came while the queue was full."""
        self._cluster = cluster
        self._strangers = dict(strangers or {})
        self._filters = (*filters, *self._strangers)
        self._fence = f"shoal/fence/{cluster}-{name}-{secrets.token_hex(4)}"
        self._loop = asyncio.get_running_loop()
        self._tokens: dict[bytes, asyncio.Future[None]] = {}
        self._unsubscribed: asyncio.Future[None] = self._loop.create_future()
        self._stopping = False
        self._missed = False
        """The broker could not be reached, and that has been said."""
        self._up = False
        self._client = paho.Client(
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
        pause_s = random.uniform(0.2, 1.0)
        self._client.reconnect_delay_set(min_delay=pause_s, max_delay=2 * pause_s)  # type: ignore[arg-type]
        self._client.on_connect = self._connected
        self._client.on_connect_fail = self._unreached
        self._client.on_disconnect = self._disconnected
        self._client.on_subscribe = self._subscribed
        self._client.on_unsubscribe = lambda *_what: self._call(self._all_unsubscribed, None)
        self._client.on_message = self._arrived
        self._client.on_socket_open = _send_small_messages_at_once

    def start(self) -> None:
        """Begin to connect, and to reconnect whenever the broker goes away."""
        self._client.connect_async(self.url.host, self.url.port, KEEPALIVE_S)
        self._client.loop_start()

    async def stop(self) -> None:
        """Disconnect in order, so that no last will is sent, and end the thread.

        What still came in would make the system reset the connection, and the broker would take that for
        a loss: so nothing is left subscribed before.
        """
        self._stopping = True
        if self._up:
            self._client.unsubscribe([*self._filters, self._fence])
            await asyncio.wait((self._unsubscribed,), timeout=STOP_S)
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

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

    def publish(self, message: Message, board: BoardId | None = None) -> bool:
        """Publish where the table says; return False if the broker is away and nothing was sent."""
        route = wire.route_of(type(message))
        return self._send(
            wire.topic(self._cluster, type(message), board), wire.encode(message), route.qos, route.retain
        )

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

    def _all_unsubscribed(self, _nothing: object) -> None:
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

    # paho's thread from here on

    def _call(self, function: Callable[..., None], argument: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            log.debug("event loop closed; dropped %r", argument)

    def _connected(
        self, client: paho.Client, _user: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            self._call(self._put, Down(reason=f"refused: {reason}"))
            return
        self._up, self._missed = True, False
        client.subscribe([(name, 1) for name in (*self._filters, self._fence)])

    def _subscribed(self, client: paho.Client, *_rest: object) -> None:
        client.publish(self._fence, b"", 1)

    def _disconnected(
        self, _client: paho.Client, _user: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        self._up, self._missed = False, True
        if not self._stopping:
            self._call(self._put, Down(reason=str(reason)))

    def _unreached(self, _client: paho.Client, _user: object) -> None:
        if not self._missed and not self._stopping:
            self._missed = True
            self._call(self._put, Down(reason="cannot be reached"))

    def _arrived(self, _client: paho.Client, _user: object, message: paho.MQTTMessage) -> None:
        if message.topic == self._fence:
            if message.payload:
                self._call(self._token_back, bytes(message.payload))
            else:
                self._call(self._put, Up())
            return
        stranger = self._strangers.get(message.topic)
        if stranger is not None:
            stranger(bytes(message.payload))
            return
        try:
            envelope = wire.decode(message.topic, bytes(message.payload), retained=message.retain)
        except WireError as error:
            self.refused += 1
            log.warning("refused a message: %s", error)
            return
        self._call(self._put, envelope)


def _send_small_messages_at_once(_client: paho.Client, _user: object, sock: object) -> None:
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
