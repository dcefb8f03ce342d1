"""A broker in this process, for one machine where mosquitto is not installed: amqtt, made safe.

amqtt 0.12.1 brings the listener, the packets, the tables of subscriptions and retained messages, and
the rules of topic filters.  The life of a connection is ours, because amqtt's own

- sends retained messages to clients that did not subscribe to them;
- never ends a client that fell silent, so that its will is never sent;
- leaves the old connection of a reused client id open, and sends its will when that breaks, late;
- acknowledges a message before passing it on, and drops it if the sender has left by then;
- raises the QoS of a message to that of the subscription;
- waits for ever in the middle of a packet, buffers up to 256 MB of it, and queues without bound for a
  client that does not read.

Spoken here: MQTT 3.1.1 with QoS 0 and 1, retained messages (in memory only) and last wills.  Every session
is clean, QoS 2 is granted as 1 and refused from a sender, and there are no users: listen on loopback only.
Messages to one client keep their order: after SUBACK come the retained messages, then what is published.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

from amqtt.adapters import BufferReader, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.errors import MQTTError
from amqtt.mqtt import packet_class
from amqtt.mqtt.connack import CONNECTION_ACCEPTED, UNACCEPTABLE_PROTOCOL_VERSION, ConnackPacket
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.packet import CONNECT, MQTTFixedHeader
from amqtt.mqtt.pingreq import PingReqPacket
from amqtt.mqtt.pingresp import PingRespPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsuback import UnsubackPacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket

MAX_PACKET_BYTES: Final = 1 << 20
MAX_UNREAD_BYTES: Final = 64 << 20  # queued for one client; whoever reads less is ended
MAX_CONNECTIONS: Final = 256
MAX_FILTERS: Final = 100  # subscriptions of one client
CONNECT_S: Final = 10.0  # from the connection to a whole CONNECT
PATIENCE: Final = 1.5  # keepalives of silence that end a client (MQTT 3.1.1, section 3.1.2.10)

MQTT_3_1_1: Final = b"\x00\x04MQTT\x04"
REFUSED: Final = 0x80  # the return code of a subscription that was not granted

_log = logging.getLogger(__name__)


def run(listening: socket.socket, started: Callable[[], None]) -> None:
    """Serve on `listening`, which is bound to loopback, until SIGINT or SIGTERM; call `started` once."""
    asyncio.run(_run(listening, started))


async def _run(listening: socket.socket, started: Callable[[], None]) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    broker = LoopbackBroker(listening)
    await broker.start()
    started()
    await stopped.wait()
    await broker.shutdown()


class _Client:
    """A connected client: its session as amqtt keeps it, and the way to it."""

    def __init__(self, session: Any, transport: asyncio.WriteTransport) -> None:  # noqa: ANN401  amqtt's
        self.session = session
        self.filters: set[str] = set()
        self.silence_s = session.keep_alive * PATIENCE or None
        self._transport = transport
        self._packet_id = 0

    def send(self, packet: Any) -> None:  # noqa: ANN401  one of amqtt's packets
        """Queue `packet`, or end the client if it has left too much unread."""
        if not self._transport.is_closing():
            self._transport.write(packet.to_bytes())
            if self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                _log.warning("%s ended: it does not read what it subscribed to", self.session.client_id)
                self.end()

    def publish(self, topic: str, data: bytes, *, qos: int, retain: bool) -> None:
        """Queue a message.  Its PUBACK is not waited for: on one connection nothing is sent twice."""
        if qos:
            self._packet_id = self._packet_id % 0xFFFF + 1
        self.send(PublishPacket.build(topic, data, self._packet_id if qos else None, False, qos, retain))

    def end(self) -> None:
        """Close the connection, whatever is still queued."""
        self._transport.abort()


class LoopbackBroker(Broker):  # type: ignore[misc]  # amqtt ships no types
    """An amqtt broker on a socket that is given, with the life of a connection replaced."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__({"listeners": {"default": {"bind": "127.0.0.1:0"}}, "plugins": {}})
        self.broken = 0
        """Connections that were ended because of what they sent."""
        self._listening = listening
        self._clients: dict[str, _Client] = {}
        self._connections: set[asyncio.StreamWriter] = set()

    async def _create_server_instance(self, *_: object) -> asyncio.Server:
        return await asyncio.start_server(self._serve, sock=self._listening)

    async def shutdown(self) -> None:
        """End all connections and stop listening."""
        for writer in self._connections:
            writer.transport.abort()
        await super().shutdown()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end; whatever it sends, it can end only itself."""
        client = None
        self._connections.add(writer)
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                raise MQTTError(f"more than {MAX_CONNECTIONS} connections")
            client = await asyncio.wait_for(self._accept(reader, writer), CONNECT_S)
            while True:
                header, body = await asyncio.wait_for(_read_packet(reader), client.silence_s)
                packet = await packet_class(header).from_stream(BufferReader(body), fixed_header=header)
                if isinstance(packet, DisconnectPacket):
                    client.session.will_flag = False
                    break
                await self._receive(client, packet)
                await asyncio.sleep(0)  # the others' turn, even if more has already come
        except (EOFError, OSError, asyncio.TimeoutError):
            pass  # it went, or fell silent
        except Exception as error:  # what amqtt's parsers raise on hostile bytes has no common base
            self.broken += 1
            if self.broken & (self.broken - 1) == 0:  # the log of an attack stays short
                _log.warning("connection ended, %d so far: %.200r", self.broken, error)
        finally:
            self._connections.discard(writer)
            writer.transport.abort()
            if client is not None:
                await self._leave(client)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Client:
        header, body = await _read_packet(reader)
        if header.packet_type != CONNECT:
            raise MQTTError(f"expected CONNECT, got packet type {header.packet_type}")
        if not body.startswith(MQTT_3_1_1):
            writer.write(ConnackPacket.build(0, UNACCEPTABLE_PROTOCOL_VERSION).to_bytes())
            raise MQTTError(f"expected MQTT 3.1.1, got {body[:7]!r}")
        connect = BufferReader(header.to_bytes() + body)
        _, session = await BrokerProtocolHandler.init_from_connect(
            connect, StreamWriterAdapter(writer), self.plugins_manager
        )
        if session.will_flag:
            _check_message(session.will_topic, session.will_qos)
        if session.client_id in self._clients:
            await self._leave(self._clients[session.client_id])
        client = self._clients[session.client_id] = _Client(session, writer.transport)
        client.send(ConnackPacket.build(0, CONNECTION_ACCEPTED))
        return client

    async def _leave(self, client: _Client) -> None:
        """End `client`, forget it and send its will, all at once; do nothing the second time."""
        session = client.session
        client.end()
        if self._clients.get(session.client_id) is not client:
            return
        del self._clients[session.client_id]
        await self._del_all_subscriptions(session)
        if session.will_flag:
            await self._pass_on(
                session.will_topic, session.will_message, session.will_qos, retain=session.will_retain
            )

    async def _receive(self, client: _Client, packet: Any) -> None:  # noqa: ANN401  one of amqtt's packets
        match packet:
            case PublishPacket():
                _check_message(packet.topic_name, packet.qos)
                await self._pass_on(packet.topic_name, packet.data, packet.qos, retain=packet.retain_flag)
                if packet.qos:
                    client.send(PubackPacket.build(packet.packet_id))
            case SubscribePacket():
                granted = [await self._subscribe(client, name, qos) for name, qos in packet.payload.topics]
                client.send(SubackPacket.build(packet.variable_header.packet_id, granted))
                for (name, _), qos in zip(packet.payload.topics, granted, strict=True):
                    if qos != REFUSED:
                        self._send_retained(client, name, qos)
            case UnsubscribePacket():
                for name in packet.payload.topics:
                    self._unsubscribe(client, name)
                client.send(UnsubackPacket.build(packet.variable_header.packet_id))
            case PingReqPacket():
                client.send(PingRespPacket.build())
            case PubackPacket():
                pass
            case _:
                raise MQTTError(f"{client.session.client_id} sent a {type(packet).__name__}")

    async def _pass_on(self, topic: str, data: bytes, qos: int, *, retain: bool) -> None:
        """Send a message to all who subscribed to it, then keep it if it is to be retained."""
        for name, subscriptions in self._subscriptions.items():
            if self._matches(topic, name):
                for session, granted in subscriptions:
                    self._clients[session.client_id].publish(topic, data, qos=min(qos, granted), retain=False)
        if retain:
            await self.retain_message(None, topic, data, qos)

    async def _subscribe(self, client: _Client, name: str, qos: int) -> int:
        self._unsubscribe(client, name)
        if not name or qos > 2 or len(client.filters) >= MAX_FILTERS:
            return REFUSED
        granted: int = await self.add_subscription((name, min(qos, 1)), client.session)
        if granted != REFUSED:
            client.filters.add(name)
        return granted

    def _unsubscribe(self, client: _Client, name: str) -> None:
        client.filters.discard(name)
        self._del_subscription(name, client.session)
        if not self._subscriptions.get(name, True):
            del self._subscriptions[name]

    def _send_retained(self, client: _Client, name: str, granted: int) -> None:
        for topic, kept in self._retained_messages.items():
            if self._matches(topic, name):
                client.publish(topic, kept.data, qos=min(kept.qos, granted), retain=True)


async def _read_packet(reader: asyncio.StreamReader) -> tuple[Any, bytes]:
    """Return the header and the bytes of the next packet, once all of it is here."""
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while shift < 28:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    else:
        raise MQTTError("expected a length of at most 4 bytes")
    if length > MAX_PACKET_BYTES:
        raise MQTTError(f"expected a packet of at most {MAX_PACKET_BYTES} bytes, got {length}")
    return MQTTFixedHeader(first >> 4, first & 0x0F, length), await reader.readexactly(length)


def _check_message(topic: str, qos: int) -> None:
    if not topic or topic.startswith("$") or not {"+", "#", "\0"}.isdisjoint(topic):
        raise MQTTError(f"expected a topic without wildcards, got {topic!r:.100}")
    if len(topic.encode()) > 0xFFFF:  # amqtt renders bytes that are not UTF-8, which makes them longer
        raise MQTTError("expected a topic of at most 65535 bytes")
    if qos > 1:
        raise MQTTError(f"{topic:.100}: expected QoS 0 or 1, got {qos}")
