"""Of MQTT our client uses no more than docs/scale.md says that brokers share, packet by packet."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from shoal import wire
from shoal.coordinator.service import Service
from shoal.coordinator.turns import Absence
from shoal.coordinator.weigh import Settings
from shoal.messages import Airtime, Deployment, Desired, Presence
from shoal.mqtt import Mqtt, Up
from shoal.records import BoardId
from shoal.store import Store
from tests import build
from tests.build import A

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
PACKETS = {
    1: "CONNECT",
    3: "PUBLISH",
    4: "PUBACK",
    5: "PUBREC",
    6: "PUBREL",
    7: "PUBCOMP",
    8: "SUBSCRIBE",
    10: "UNSUBSCRIBE",
    12: "PINGREQ",
    14: "DISCONNECT",
}


@dataclass
class Used:
    """What clients have sent."""

    packets: set[str] = field(default_factory=set)
    levels: set[int] = field(default_factory=set)
    clean: set[int] = field(default_factory=set)
    wills: set[str] = field(default_factory=set)
    qos: set[int] = field(default_factory=set)
    retained: int = 0
    topics: list[str] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)

    def connect(self, body: bytes) -> None:
        """Note the variable header of a CONNECT: name and level of the protocol, flags."""
        assert body[:6] == b"\x00\x04MQTT"
        level, flags = body[6], body[7]
        self.levels.add(level)
        self.clean.add(flags >> 1 & 1)
        if flags & 0b100:
            self.wills.add(f"QoS {flags >> 3 & 3}" + (" retained" if flags & 0b100000 else ""))


def text_at(body: bytes, at: int) -> tuple[str, int]:
    """Return the string that begins at `at`, and where it ends."""
    end = at + 2 + int.from_bytes(body[at : at + 2], "big")
    return body[at + 2 : end].decode(), end


class Recorder:
    """Answers as a broker would that has nothing to tell, and passes on to no one but the sender."""

    def __init__(self) -> None:
        self.used = Used()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read the packets of one client."""
        while first := await reader.read(1):
            size, shift = 0, 0
            while True:
                byte = (await reader.readexactly(1))[0]
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            body = await reader.readexactly(size)
            kind = PACKETS[first[0] >> 4]
            self.used.packets.add(kind)
            writer.write(self.answer(kind, first[0], body))
        writer.close()

    def answer(self, kind: str, first: int, body: bytes) -> bytes:
        used = self.used
        if kind == "CONNECT":
            used.connect(body)
            return b"\x20\x02\x00\x00"
        if kind == "PINGREQ":
            return b"\xd0\x00"
        if kind == "SUBSCRIBE":
            count, at = 0, 2
            while at < len(body):
                name, at = text_at(body, at)
                used.filters.append(name)
                used.qos.add(body[at])
                count, at = count + 1, at + 1
            return bytes((0x90, 2 + count)) + body[:2] + b"\x01" * count
        if kind == "UNSUBSCRIBE":
            return b"\xb0\x02" + body[:2]
        if kind != "PUBLISH":
            return b""
        name, at = text_at(body, 0)
        used.topics.append(name)
        used.retained += first & 1
        qos = first >> 1 & 3
        used.qos.add(qos)
        acknowledged = b"\x40\x02" + body[at : at + 2] if qos else b""
        echoed = name.startswith("shoal/fence/")  # the client waits for what it sends itself
        return acknowledged + (bytes((first, *_length(len(body)))) + body if echoed else b"")


def _length(size: int) -> list[int]:
    found = []
    while True:
        size, low = divmod(size, 128)
        found.append(low | (128 if size else 0))
        if not size:
            return found


def recorded(play: Callable[[str], Awaitable[None]]) -> Used:
    """Return what was sent by whoever `play` has talk to the broker at a URL."""

    async def run() -> Used:
        recorder = Recorder()
        server = await asyncio.start_server(recorder.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            await play(f"mqtt://127.0.0.1:{port}")
        finally:
            server.close()
            await server.wait_closed()
        return recorder.used

    return asyncio.run(run())


async def board(url: str) -> None:
    """Say and hear what an agent does."""
    filters = (wire.topic("home", Desired, A), wire.topic("home", Airtime, BoardId("+")))
    will = Presence(incarnation=1, state="lost")
    mqtt = Mqtt(url, "home", A, filters=filters, will=will, will_board=A)
    mqtt.start()
    while not isinstance(await mqtt.next(), Up):
        pass
    for message in (
        build.birth(A),
        build.presence("online"),
        build.heartbeat(),
        build.profile(build.chain()),
    ):
        assert mqtt.publish(message, A)
    await mqtt.sent(5.0)
    mqtt._client._last_msg_out = 0.0  # it has been silent for long
    mqtt._client.loop_misc()
    await mqtt.sent(5.0)
    await mqtt.stop()


async def operator(url: str) -> None:
    mqtt = Mqtt(url, "home", "operator", filters=(wire.every("home"),))
    mqtt.start()
    while not isinstance(await mqtt.next(), Up):
        pass
    mqtt.publish(build.deployment())
    mqtt.clear(Deployment)
    await mqtt.sent(5.0)
    await mqtt.stop()


def written() -> dict[str, str]:
    """Return the rows of the page's table."""
    table = PAGE.read_text().split("<!-- subset")[1]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table.split("\n\n")[0], re.MULTILINE)
    return dict(rows[1:])


def test_no_more_is_used_than_is_written_and_no_less(tmp_path: Path) -> None:
    async def everyone(url: str) -> None:
        service = Service(url, "home", "http://10.0.0.1:9000", Store(tmp_path), Settings(), Absence())
        coordinating = asyncio.ensure_future(service.live())
        await board(url)
        await operator(url)
        service.stop()
        await coordinating

    used, page = recorded(everyone), written()
    assert used.packets == set(page["packets sent"].split())
    assert used.levels == {int(page["protocol level"])}
    assert used.clean == {int(page["clean session"])}
    assert used.qos == {int(each) for each in page["QoS"].split()}
    assert used.wills == {page["last will"]}
    assert used.retained > 0
    assert int(page["largest payload, bytes"]) == wire.MAX_PAYLOAD_BYTES
    wildcards = set(page["wildcards"].split())
    for name in used.filters:
        levels = name.split("/")
        assert not name.startswith("$"), "shared subscriptions and the broker's own topics"
        assert {level for level in levels if set(level) & set("+#")} <= wildcards
        assert "#" not in levels[:-1]
    assert {level for name in used.filters for level in name.split("/")} & {"+", "#"} == wildcards
    assert used.topics
    assert not any(set(name) & set("+#$\x00") for name in used.topics)


def test_every_row_of_the_table_of_topics_is_within_it() -> None:
    page = written()
    assert {route.qos for route in wire.WIRE} <= {int(each) for each in page["QoS"].split()}
    for route in wire.WIRE:
        assert not set(route.path.replace("{board}", "")) & set("+#$")
