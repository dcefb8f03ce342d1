"""Our client of MQTT: it keeps up with what comes, and knows its own words."""

import asyncio
from collections.abc import Iterator

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


def test_a_thousand_messages_take_few_turns_of_the_loop_however_they_are_cut() -> None:
    """Or a loop with other work and other connections falls behind for good."""

    async def run() -> int:
        recorder, writers = Recorder(), []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await recorder.serve(reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        mqtt = Mqtt(
            f"mqtt://127.0.0.1:{port}", "home", "ear", filters=(wire.topic("home", Heartbeat, BoardId("+")),)
        )
        await up(mqtt)
        burst = heartbeat() * MANY
        writers[0].write(burst[: len(burst) // 2 + 7])
        await writers[0].drain()
        writers[0].write(burst[len(burst) // 2 + 7 :])
        turns = 0
        while mqtt.events.qsize() < MANY:
            await asyncio.sleep(0)
            turns += mqtt.events.qsize() > 0
        assert mqtt.refused == 0
        await mqtt.stop()
        server.close()
        await server.wait_closed()
        return turns

    assert asyncio.run(run()) < 4 * MANY * len(heartbeat()) / READ_BYTES


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
