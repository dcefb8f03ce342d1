"""What shoal relies on in an MQTT broker, asked of both kinds.

Nothing is waited for by sleeping: a message that must not come is ruled out by a fence, a message of
one's own that is known to come after it.
"""

import asyncio
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from shoal.coordinator import embedded_broker
from shoal.coordinator.broker import LOOPBACK, BrokerProcess, Kind, broker, find_mosquitto, mosquitto_config
from shoal.errors import ConfigError

WAIT_S = 10.0
PINGREQ, PINGRESP, DISCONNECT = b"\xc0\x00", b"\xd0\x00", b"\xe0\x00"
CONNACK = b"\x20\x02\x00\x00"

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
both_kinds = pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=needs_mosquitto), "embedded"])


@pytest.fixture(scope="module", params=[pytest.param("mosquitto", marks=needs_mosquitto), "embedded"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def server(kind: Kind) -> Iterator[BrokerProcess]:
    with BrokerProcess.start(kind, free_port()) as running:
        yield running


@pytest.fixture
def connect(server: BrokerProcess) -> Iterator["Connect"]:
    with ExitStack() as stack:
        yield Connect(server, stack)


# --- delivery ---------------------------------------------------------------------------------


def test_connects_without_a_session_left_over(connect: "Connect") -> None:
    assert connect("a").connected == ("Success", False)


@pytest.mark.parametrize("published", [0, 1])
@pytest.mark.parametrize("subscribed", [0, 1])
def test_delivers_once_with_the_lower_qos(connect: "Connect", published: int, subscribed: int) -> None:
    topic = f"qos/{published}{subscribed}"
    reader = connect("reader").subscribe(topic, subscribed)
    connect("writer").publish(topic, b"x", published)
    assert reader.next() == Got(topic, b"x", min(published, subscribed), retain=False)
    assert reader.all_before_a_fence() == []


def test_sends_nothing_without_a_subscription(connect: "Connect") -> None:
    writer = connect("writer")
    writer.publish("leak/kept", b"kept", retain=True)
    connect("reader").subscribe("leak/#").next()
    stranger = connect("stranger")
    writer.publish("leak/live", b"live")
    assert stranger.all_before_a_fence() == []


def test_sends_nothing_after_unsubscribing(connect: "Connect") -> None:
    reader, writer = connect("reader").subscribe("un/#"), connect("writer")
    reader.unsubscribe("un/#")
    writer.publish("un/x", b"x")
    assert reader.all_before_a_fence() == []


def test_a_burst_comes_in_order_without_duplicates(connect: "Connect") -> None:
    reader, writer = connect("reader").subscribe("burst"), connect("writer")
    sent = [b"%d" % i for i in range(300)]
    for payload in sent:
        writer.publish("burst", payload, wait=False)
    assert [reader.next().payload for _ in sent] == sent
    assert reader.all_before_a_fence() == []


def test_what_was_acknowledged_arrives_though_the_sender_leaves_at_once(connect: "Connect") -> None:
    reader = connect("reader").subscribe("leave/#")
    with raw(connect.server, connect_packet("leaver")) as leaver:
        assert leaver.recv(4) == CONNACK
        leaver.sendall(
            b"".join(publish_packet(f"leave/{i}", b"x", packet_id=i + 1) for i in range(20)) + DISCONNECT
        )
        assert until_closed(leaver).count(b"\x40\x02") == 20
    assert [reader.next().topic for _ in range(20)] == [f"leave/{i}" for i in range(20)]


def test_passes_a_large_message(connect: "Connect") -> None:
    reader, payload = connect("reader").subscribe("large"), os.urandom(900_000)
    connect("writer").publish("large", payload)
    assert reader.next().payload == payload


def test_ends_a_client_that_sends_too_large_a_message(connect: "Connect") -> None:
    with raw(connect.server, connect_packet("huge")) as huge:
        assert huge.recv(4) == CONNACK
        huge.sendall(b"\x30\x80\x80\x80\x01")
        assert until_closed(huge) == b""


# --- retained messages ------------------------------------------------------------------------


def test_retained_comes_once_on_subscribing_and_is_marked(connect: "Connect") -> None:
    connect("writer").publish("kept", b"x", retain=True)
    for name in ("early", "late"):
        reader = connect(name).subscribe("kept")
        assert reader.next() == Got("kept", b"x", 1, retain=True)
        assert reader.all_before_a_fence() == []


def test_retained_is_not_marked_for_who_is_already_there(connect: "Connect") -> None:
    reader = connect("reader").subscribe("there")
    connect("writer").publish("there", b"x", retain=True)
    assert reader.next() == Got("there", b"x", 1, retain=False)


def test_the_newest_retained_message_counts(connect: "Connect") -> None:
    writer = connect("writer")
    for payload in (b"old", b"new"):
        writer.publish("newest", payload, retain=True)
    reader = connect("reader").subscribe("newest")
    assert [got.payload for got in reader.all_before_a_fence()] == [b"new"]


def test_an_empty_payload_clears_a_retained_message(connect: "Connect") -> None:
    writer = connect("writer")
    early = connect("early").subscribe("cleared")
    for payload in (b"x", b""):
        writer.publish("cleared", payload, retain=True)
        assert early.next().payload == payload
    assert connect("late").subscribe("cleared").all_before_a_fence() == []


def test_retained_messages_match_wildcards(connect: "Connect") -> None:
    writer = connect("writer")
    topics = ["shoal/v1/c/board/a/birth", "shoal/v1/c/board/b/birth", "shoal/v1/c/plan"]
    for topic in [*topics, "shoal/v1/d/plan", "shoal/v1/c/board/a/b/birth"]:
        writer.publish(topic, b"x", retain=True)
    whole = connect("whole").subscribe("shoal/v1/c/#").all_before_a_fence()
    births = connect("births").subscribe("shoal/v1/c/board/+/birth").all_before_a_fence()
    assert sorted(got.topic for got in whole) == sorted([*topics, "shoal/v1/c/board/a/b/birth"])
    assert sorted(got.topic for got in births) == topics[:2]


def test_ones_own_message_comes_after_all_that_is_retained(connect: "Connect") -> None:
    """The fence: after SUBACK, a message of one's own ends the retained state."""
    writer, topics = connect("writer"), [f"fence/{i:02}" for i in range(50)]
    for topic in topics:
        writer.publish(topic, os.urandom(2000), retain=True)
    for turn in range(5):
        reader = connect(f"reader{turn}").subscribe("fence/#")
        reader.publish("fence/own", b"", wait=False)
        seen = [reader.next() for _ in range(51)]
        assert sorted(got.topic for got in seen[:-1]) == topics
        assert all(got.retain for got in seen[:-1])
        assert seen[-1] == Got("fence/own", b"", 1, retain=False)


# --- last wills and liveness ------------------------------------------------------------------


def test_a_closed_socket_sends_the_will(connect: "Connect") -> None:
    watch = connect("watch").subscribe("will/closed")
    with raw(connect.server, connect_packet("closed", will=("will/closed", b"gone"))) as board:
        assert board.recv(4) == CONNACK
    closed_s = time.monotonic()
    assert watch.next() == Got("will/closed", b"gone", 1, retain=False)
    assert time.monotonic() - closed_s < 1


def test_a_retained_will_is_kept(connect: "Connect") -> None:
    watch = connect("watch").subscribe("will/kept")
    with raw(connect.server, connect_packet("kept", will=("will/kept", b"gone"), retain=True)) as board:
        assert board.recv(4) == CONNACK
    assert watch.next() == Got("will/kept", b"gone", 1, retain=False)
    assert connect("late").subscribe("will/kept").next() == Got("will/kept", b"gone", 1, retain=True)


def test_frozen_clients_are_ended_and_their_wills_sent(connect: "Connect", kind: Kind) -> None:
    """Also in the middle of a packet.  mosquitto looks for silent clients only every 5 s or so."""
    watch = connect("watch").subscribe("frozen/#")
    with ExitStack() as stack:
        boards = [
            stack.enter_context(
                raw(connect.server, connect_packet(name, will=(f"frozen/{name}", b""), keepalive=1))
            )
            for name in ("half", "still")
        ]
        assert [board.recv(4) for board in boards] == [CONNACK, CONNACK]
        boards[0].sendall(publish_packet("frozen", b"x" * 100, packet_id=1)[:50])
        silent_s = time.monotonic()
        assert sorted([watch.next().topic, watch.next().topic]) == ["frozen/half", "frozen/still"]
        assert 1 <= time.monotonic() - silent_s < {"mosquitto": 8, "embedded": 2}[kind]
        assert [until_closed(board) for board in boards] == [b"", b""]


def test_a_client_that_pings_is_kept(connect: "Connect") -> None:
    with raw(connect.server, connect_packet("alive", keepalive=1)) as board:
        assert board.recv(4) == CONNACK
        for _ in range(2):
            time.sleep(0.9)
            board.sendall(PINGREQ)
            assert board.recv(2) == PINGRESP


def test_leaving_in_good_order_sends_no_will(connect: "Connect") -> None:
    watch = connect("watch").subscribe("will/good")
    with raw(connect.server, connect_packet("good", will=("will/good", b"gone")) + DISCONNECT) as board:
        assert until_closed(board) == CONNACK
    assert watch.all_before_a_fence() == []


def test_a_client_that_comes_again_replaces_itself(connect: "Connect") -> None:
    """A board restarts before its old connection is known to be dead: its old will comes before its birth."""
    watch = connect("watch").subscribe("twin/#")
    packet = connect_packet("twin", will=("twin/will", b"gone"))
    with raw(connect.server, packet) as old, raw(connect.server, packet) as new:
        assert old.recv(4) == CONNACK
        assert new.recv(4) == CONNACK
        assert until_closed(old) == b""
        new.sendall(publish_packet("twin/birth", b"", packet_id=1))
        assert [watch.next().topic, watch.next().topic] == ["twin/will", "twin/birth"]
        assert watch.all_before_a_fence() == []
    assert watch.next().topic == "twin/will"


# --- where the two differ ---------------------------------------------------------------------


def test_only_mosquitto_keeps_messages_for_who_is_away(connect: "Connect", kind: Kind) -> None:
    """Nobody in shoal asks for it: sessions are clean, and what must not be missed is retained."""
    away = connect("away", clean=False).subscribe("away")
    away.close()
    connect("writer").publish("away", b"x")
    back = connect("away", clean=False)
    assert back.connected == ("Success", kind == "mosquitto")
    assert [got.payload for got in back.all_before_a_fence()] == {"mosquitto": [b"x"], "embedded": []}[kind]


def test_only_mosquitto_speaks_qos_2(connect: "Connect", kind: Kind) -> None:
    assert connect("reader").granted("two", 2) == {"mosquitto": 2, "embedded": 1}[kind]
    with raw(connect.server, connect_packet("writer2")) as writer:
        assert writer.recv(4) == CONNACK
        writer.sendall(publish_packet("two", b"x", packet_id=1, qos=2))
        assert writer.recv(4) == {"mosquitto": b"\x50\x02\x00\x01", "embedded": b""}[kind]


# --- hardship ---------------------------------------------------------------------------------


@both_kinds
def test_survives_whatever_is_sent_to_it(kind: Kind, capfd: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(7)
    hello = connect_packet("hostile", will=("hostile/will", b"x"))
    later = [
        hello,  # a second CONNECT
        b"\x30\xff\xff\xff\x7f" + b"x" * 1000,  # 256 MB announced
        b"\x30\xff\xff\xff\xff\xff\xff",  # a length without end
        b"\x32\x03\x00\x01a",  # no packet id
        b"\x36\x05\x00\x01a\x00\x01",  # QoS 3
        b"\x30\x05\x00\x03a/#",  # a wildcard in a topic
        b"\x30\x02\x00\x00",  # an empty topic
        b"\x30\x04\x00\xffab",  # a string longer than its packet
        b"\x30\x05\x00\x02\xc3\x28x",  # not UTF-8
        b"\x82\x02\x00\x01",  # subscribes to nothing
        b"\x82\x06\x00\x01\x00\x01a\x07",  # QoS 7
        b"\x82\xff\xff\x3f\x00\x01" + b"\x00\x00\x01" * 349_524,  # a great many filters
        b"\x00\x00",
        b"\xf0\x00",
    ]
    with ExitStack() as stack:
        server = stack.enter_context(BrokerProcess.start(kind, free_port()))
        connect = Connect(server, stack)
        connect("before").all_before_a_fence()
        process = psutil.Process(server.pid)
        before_bytes = process.memory_info().rss
        for half in (b"", hello[:9], b"\x10", b"\x10\xff\xff\xff\x7f"):
            for i in range(10):
                stack.enter_context(raw(server, half))  # and left open
                stack.enter_context(raw(server, connect_packet(f"{i}-{len(half)}") + half))
        for data in [*later, *[chance.randbytes(chance.randrange(1, 200)) for _ in range(150)]]:
            for prefix in (b"", hello):
                with raw(server, prefix + data) as connection:
                    with suppress(OSError):  # the broker was faster
                        connection.shutdown(socket.SHUT_WR)
                    until_closed(connection)
        watch = connect("after").subscribe("hostile/end")
        connect("writer").publish("hostile/end", b"x")
        assert watch.next().payload == b"x"
        assert process.is_running()
        assert process.memory_info().rss - before_bytes < 30e6
    log = capfd.readouterr().err
    assert "Traceback" not in log
    assert len(log.splitlines()) < 50


@both_kinds
def test_a_client_that_does_not_read_costs_no_more_than_its_limit(kind: Kind) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(BrokerProcess.start(kind, free_port()))
        connect = Connect(server, stack)
        deaf = stack.enter_context(raw(server, connect_packet("deaf") + b"\x82\x09\x00\x01\x00\x04deaf\x01"))
        assert deaf.recv(4) == CONNACK
        assert deaf.recv(5) == b"\x90\x03\x00\x01\x01"
        writer, payload = connect("writer"), bytes(900_000)
        for _ in range(150):
            writer.publish("deaf", payload)
        assert writer.all_before_a_fence() == []
        assert psutil.Process(server.pid).memory_info().rss < 150e6


def test_is_idle_when_nothing_is_said(connect: "Connect") -> None:
    connect("quiet")
    process = psutil.Process(connect.server.pid)
    before = process.cpu_times()
    time.sleep(1)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.05


@pytest.mark.parametrize(("limit", "value"), [("CONNECT_S", 0.05), ("MAX_CONNECTIONS", 0)])
def test_a_connection_that_says_nothing_is_ended(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    async def talk() -> bytes:
        with socket.create_server((LOOPBACK, 0)) as listening:
            server = embedded_broker.LoopbackBroker(listening)
            await server.start()
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            try:
                return await asyncio.wait_for(reader.read(), WAIT_S)
            except ConnectionResetError:
                return b""
            finally:
                writer.close()
                await server.shutdown()

    monkeypatch.setattr(embedded_broker, limit, value)
    assert asyncio.run(talk()) == b""


# --- restarts ---------------------------------------------------------------------------------


@both_kinds
def test_clients_come_back_to_a_broker_restarted_on_its_port(kind: Kind) -> None:
    port = free_port()
    with ExitStack() as stack:
        first = stack.enter_context(BrokerProcess.start(kind, port))
        client = Connect(first, stack)("client")
        first.kill()
        stack.enter_context(BrokerProcess.start(kind, port))
        assert client.wait_until_connected() == ("Success", False)
        client.subscribe("back").publish("back", b"x")
        assert client.next().payload == b"x"


@needs_mosquitto
def test_retained_messages_survive_a_killed_mosquitto(tmp_path: Path) -> None:
    port = free_port()
    for turn in range(3):
        with ExitStack() as stack:
            server = stack.enter_context(BrokerProcess.start("mosquitto", port, tmp_path / "state dir"))
            client = Connect(server, stack)("client")
            seen = client.subscribe("kept/#").all_before_a_fence()
            assert sorted(got.payload for got in seen) == [b"%d" % i for i in range(turn)]
            client.publish(f"kept/{turn}", b"%d" % turn, retain=True)
            client.all_before_a_fence()  # written before the broker reads on, 1 ms after PUBACK
            server.kill()


def test_a_port_that_is_taken_is_named(server: BrokerProcess, kind: Kind) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=f"broker on {LOOPBACK}:{port}: Address already in use"):
        BrokerProcess.start(kind, port)


# --- the command ------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_its_broker_on_a_signal(kind: Kind, number: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "shoal", "broker", "--port", str(port)]
    command += ["--embedded"] if kind == "embedded" else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = iter(process.stderr)
        assert any(f"{kind}" in line and f"{LOOPBACK}:{port}" in line for line in log)
        children = psutil.Process(process.pid).children()
        process.send_signal(number)
        assert process.wait(WAIT_S) == 0
        assert not any(child.is_running() for child in children)
        assert "Traceback" not in "".join(log)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--embedded", "--bind", "0.0.0.0"], "loopback only"),
        (["--embedded", "--state-dir", "state"], "in memory only"),
    ],
)
def test_the_embedded_broker_refuses_what_it_cannot_do(arguments: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"{reason}.*apt install mosquitto"):
        broker.main(arguments, standalone_mode=False)


def test_a_missing_amqtt_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "shoal.coordinator.embedded_broker")
    monkeypatch.delattr("shoal.coordinator.embedded_broker")
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with pytest.raises(
        ConfigError, match=r"apt install mosquitto, or in a clone of shoal pip install '\.\[broker\]'"
    ):
        broker.main(["--embedded", "--port", str(free_port())], standalone_mode=False)


@needs_mosquitto
def test_an_address_that_others_reach_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(BrokerProcess, "start", lambda *_: (_ for _ in ()).throw(ConfigError("not started")))
    with pytest.raises(ConfigError, match="not started"):
        broker.main(["--bind", "0.0.0.0"], standalone_mode=False)
    assert "anyone on that network can reassign boards" in capsys.readouterr().err


def test_mosquitto_listens_where_it_is_told_and_keeps_state_only_if_told() -> None:
    plain = mosquitto_config(bind="::1", port=1234, state_dir=None, as_root=False)
    kept = mosquitto_config(bind="::1", port=1234, state_dir=Path("/a b"), as_root=True)
    assert "listener 1234 ::1" in plain.splitlines()
    assert "persistence" not in plain
    assert "user" not in plain
    assert {"persistence true", "persistence_location /a b/", "user root"} < set(kept.splitlines())


# --- clients ----------------------------------------------------------------------------------


class Got(NamedTuple):
    topic: str
    payload: bytes
    qos: int
    retain: bool


class Client:
    """A paho client whose callbacks fill queues."""

    def __init__(self, server: BrokerProcess, name: str, *, clean: bool) -> None:
        self._got: queue.SimpleQueue[Got] = queue.SimpleQueue()
        self._connections: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
        self._acknowledged: queue.SimpleQueue[list[ReasonCode]] = queue.SimpleQueue()
        self._name = name
        client = self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=name, clean_session=clean, protocol=mqtt.MQTTv311
        )
        client.on_message = lambda _c, _u, m: self._got.put(Got(m.topic, bytes(m.payload), m.qos, m.retain))
        client.on_connect = lambda _c, _u, flags, code, _p: self._connections.put(
            (str(code), flags.session_present)
        )
        client.on_subscribe = lambda _c, _u, _mid, codes, _p: self._acknowledged.put(codes)
        client.on_unsubscribe = lambda _c, _u, _mid, codes, _p: self._acknowledged.put(codes)
        client.reconnect_delay_set(1, 1)
        host, port = server.url.removeprefix("mqtt://").rsplit(":", 1)
        client.connect(host, int(port))
        client.loop_start()
        self.connected = self.wait_until_connected()

    def wait_until_connected(self) -> tuple[str, bool]:
        return self._connections.get(timeout=WAIT_S)

    def granted(self, topic: str, qos: int) -> int:
        self._client.subscribe(topic, qos)
        (code,) = self._acknowledged.get(timeout=WAIT_S)
        value: int = code.value
        return value

    def subscribe(self, topic: str, qos: int = 1) -> "Client":
        assert self.granted(topic, qos) == qos
        return self

    def unsubscribe(self, topic: str) -> None:
        self._client.unsubscribe(topic)
        self._acknowledged.get(timeout=WAIT_S)

    def publish(
        self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False, wait: bool = True
    ) -> None:
        sent = self._client.publish(topic, payload, qos, retain)
        if wait:
            sent.wait_for_publish(WAIT_S)
            assert sent.is_published()

    def next(self) -> Got:
        return self._got.get(timeout=WAIT_S)

    def all_before_a_fence(self) -> list[Got]:
        """Return what has come so far: all that comes before a message of one's own."""
        fence = f"all before/{self._name}"
        self.subscribe(fence)
        self.publish(fence, b"")
        return list(iter(self.next, Got(fence, b"", 1, retain=False)))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Connect:
    """Connects clients to one broker, and closes them at the end of a test."""

    def __init__(self, server: BrokerProcess, stack: ExitStack) -> None:
        self.server = server
        self._stack = stack

    def __call__(self, name: str, *, clean: bool = True) -> Client:
        client = Client(self.server, name, clean=clean)
        self._stack.callback(client.close)
        return client


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def raw(server: BrokerProcess, data: bytes) -> Iterator[socket.socket]:
    """A connection that has sent `data` and does nothing by itself: a board that is frozen, or hostile."""
    host, port = server.url.removeprefix("mqtt://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), WAIT_S) as connection:
        with suppress(ConnectionError):  # the broker has heard enough
            connection.sendall(data)
        yield connection


def until_closed(connection: socket.socket) -> bytes:
    """Return what comes until the broker ends the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(4096):
            received += data
    return received


def connect_packet(
    name: str, *, will: tuple[str, bytes] | None = None, retain: bool = False, keepalive: int = 60
) -> bytes:
    flags, payload = 0x02, string(name.encode())
    if will is not None:
        flags |= 0x0C | 0x20 * retain
        payload += string(will[0].encode()) + string(will[1])
    return packet(0x10, b"\x00\x04MQTT\x04" + bytes([flags]) + keepalive.to_bytes(2, "big") + payload)


def publish_packet(topic: str, payload: bytes, *, packet_id: int, qos: int = 1) -> bytes:
    return packet(0x30 | qos << 1, string(topic.encode()) + packet_id.to_bytes(2, "big") + payload)


def packet(kind: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([kind, len(body)]) + body


def string(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
