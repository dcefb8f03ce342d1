"""Our client of MQTT: it keeps up with what comes, and knows its own words."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import pytest

from shoal import wire
from shoal.coordinator.broker import BrokerProcess, Kind
from shoal.messages import Coordinator, Heartbeat
from shoal.mqtt import READ_BYTES, Mqtt, Up
from shoal.records import BoardId
from tests import build
from tests.build import A
from tests.contract.test_broker import both_kinds, free_port
from tests.contract.test_subset import Recorder

MANY = 2000


@pytest.fixture
def broker(kind: Kind) -> Iterator[BrokerProcess]:
    with BrokerProcess.start(kind, free_port()) as running:
        yield running


def heartbeat() -> bytes:
    """Return a packet with a heartbeat."""
    topic = wire.topic("home", Heartbeat, A).encode()
    body = len(topic).to_bytes(2, "big") + topic + wire.encode(build.heartbeat())
    assert len(body) < 128
    return bytes((0x30, len(body))) + body


async def up(mqtt: Mqtt) -> None:
    mqtt.start()
    while not isinstance(await mqtt.next(), Up):
        pass


class Sparing(Recorder):
    """Acknowledges nothing but what the client itself waits for."""

    def answer(self, kind: str, first: int, body: bytes) -> bytes:
        """Answer as a broker would that is far behind."""
        answer = super().answer(kind, first, body)
        return b"" if kind == "PUBLISH" and answer[:1] == b"\x40" and len(answer) == 4 else answer


def test_of_a_thousand_messages_each_turn_of_the_loop_takes_many_and_not_all() -> None:
    """However they are cut; or a loop with other work and other connections falls behind for good."""

    async def run() -> list[int]:
        recorder = Sparing()
        writers: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await recorder.serve(reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        filters = (wire.topic("home", Heartbeat, BoardId("+")),)
        mqtt = Mqtt(f"mqtt://127.0.0.1:{port}", "home", "ear", filters=filters)
        await up(mqtt)
        for number in range(15):  # paho sends no more than 20 that are not acknowledged
            mqtt.publish(build.presence("online", number), A)
        await mqtt.sent(10.0)
        burst = heartbeat() * MANY
        writers[0].write(burst[: len(burst) // 2 + 7])
        await writers[0].drain()
        writers[0].write(burst[len(burst) // 2 + 7 :])
        taken = [0]
        while taken[-1] < MANY:
            await asyncio.sleep(0)
            taken += [mqtt.events.qsize()] if mqtt.events.qsize() else []
        assert mqtt.refused == 0
        await mqtt.stop()
        server.close()
        await server.wait_closed()
        return taken

    taken, whole = asyncio.run(run()), READ_BYTES / len(heartbeat())
    assert len(taken) < 4 * MANY / whole
    assert max(after - before for before, after in pairwise(taken)) <= 2 * whole + 2


@both_kinds
def test_one_that_is_deaf_to_its_own_words_hears_those_of_others(broker: BrokerProcess) -> None:
    me = Coordinator(incarnation=5, state="online", url="http://me")
    other = Coordinator(incarnation=6, state="online", url="http://other")

    async def run() -> None:
        filters = (wire.topic("home", Coordinator),)
        mine = Mqtt(broker.url, "home", "one", filters=filters, deaf_to_own=True)
        theirs = Mqtt(broker.url, "home", "two", filters=filters)
        await up(mine)
        await up(theirs)
        mine.publish(me)
        mine.publish(me)
        await mine.sent(10.0)
        theirs.publish(other)
        await theirs.sent(10.0)
        mine.publish(me)
        await mine.sent(10.0)
        heard = [event.message for event in mine.at_hand() if isinstance(event, wire.Envelope)]
        assert heard == [other]
        theirs.publish(me)
        await theirs.sent(10.0)
        await mine.sent(10.0)
        heard = [event.message for event in mine.at_hand() if isinstance(event, wire.Envelope)]
        assert heard == [me], "the same words, but another's"
        await mine.stop()
        await theirs.stop()

    asyncio.run(run())


@both_kinds
def test_what_the_broker_had_kept_of_our_own_words_is_heard(broker: BrokerProcess) -> None:
    me = Coordinator(incarnation=5, state="online", url="http://me")

    async def run() -> None:
        mine = Mqtt(broker.url, "home", "one", filters=(wire.topic("home", Coordinator),), deaf_to_own=True)
        await up(mine)
        mine.publish(me)
        await mine.sent(10.0)
        assert not mine.at_hand()
        await mine.stop()
        again = Mqtt(broker.url, "home", "one", filters=(wire.topic("home", Coordinator),), deaf_to_own=True)
        again.start()
        found = await again.next()
        assert isinstance(found, wire.Envelope)
        assert (found.message, found.retained) == (me, True)
        await again.stop()

    asyncio.run(run())
