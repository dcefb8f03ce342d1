"""One process, several clusters: each has a presence of its own, and what happens to one is its affair."""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from shoal import wire
from shoal.coordinator import client, clusters
from shoal.coordinator.broker import BrokerProcess, Kind
from shoal.coordinator.client import Operator, fetch_history
from shoal.coordinator.depot import Depot
from shoal.coordinator.history import History, file_of
from shoal.coordinator.service import Service
from shoal.coordinator.turns import Absence
from shoal.coordinator.weigh import Settings
from shoal.errors import BoardError, ConfigError
from shoal.messages import Call, Coordinator, Decision
from shoal.mqtt import Mqtt, Up
from shoal.records import Profile
from shoal.store import Store
from tests import build
from tests.build import A
from tests.contract.test_broker import both_kinds, free_port
from tests.unit.test_history import entry

WAIT_S = 10.0
URL = "http://10.0.0.1:9000"


@pytest.fixture
def broker(kind: Kind) -> Iterator[BrokerProcess]:
    with BrokerProcess.start(kind, free_port()) as running:
        yield running


def service(broker: BrokerProcess, cluster: str, folder: Path, absence: Absence) -> Service:
    return Service(broker.url, cluster, URL, Store(folder), Settings(), absence)


async def coordinator(broker: BrokerProcess, cluster: str, state: str) -> Coordinator:
    """Return the coordinator of a cluster once it says that it is in that state."""
    async with Operator(broker.url, cluster) as operator:
        for _ in range(round(WAIT_S / 0.1)):
            found = operator.view.coordinator
            if found is not None and found.state == state:
                return found
            await operator.next(0.1)
    raise AssertionError(f"{cluster}: {found}")


@both_kinds
def test_a_cluster_that_is_taken_over_leaves_the_others_alone(
    broker: BrokerProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        absence = Absence()
        mine = [service(broker, cluster, tmp_path / "mine", absence) for cluster in ("a", "b")]
        living = asyncio.ensure_future(clusters._live(mine))
        first = {cluster: await coordinator(broker, cluster, "online") for cluster in ("a", "b")}
        newer = service(broker, "b", tmp_path / "newer", Absence())
        taking = asyncio.ensure_future(newer.live())
        await asyncio.sleep(0)
        for _ in range(round(WAIT_S / 0.1)):
            if "has taken over" in caplog.text:
                break
            await asyncio.sleep(0.1)
        assert f"another coordinator of b, {URL}, has taken over" in caplog.text
        assert (await coordinator(broker, "a", "online")) == first["a"]
        assert (await coordinator(broker, "b", "online")).incarnation > first["b"].incarnation
        clusters._stop(mine)
        await living
        assert (await coordinator(broker, "a", "left")).incarnation == first["a"].incarnation
        assert (await coordinator(broker, "b", "online")).incarnation > first["b"].incarnation
        newer.stop()
        await taking

    asyncio.run(run())


@both_kinds
def test_a_process_whose_clusters_are_all_taken_over_says_so(broker: BrokerProcess, tmp_path: Path) -> None:
    async def run() -> None:
        living = asyncio.ensure_future(clusters._live([service(broker, "a", tmp_path / "mine", Absence())]))
        await coordinator(broker, "a", "online")
        newer = service(broker, "a", tmp_path / "newer", Absence())
        taking = asyncio.ensure_future(newer.live())
        with pytest.raises(ConfigError, match=f"another coordinator of a, {URL}, has taken over"):
            await asyncio.wait_for(living, WAIT_S)
        newer.stop()
        await taking

    asyncio.run(run())


@both_kinds
def test_what_came_while_a_cluster_waited_for_its_turn_is_heard_before_it_decides(
    broker: BrokerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its boards, which spoke meanwhile, would count as lost."""
    absence = Absence()
    seen: list[bool] = []

    async def until(holds: Callable[[], object]) -> None:
        for _ in range(round(WAIT_S / 0.01)):
            if holds():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("not in time")

    async def run() -> None:
        mine = service(broker, "a", tmp_path, absence)
        living = asyncio.ensure_future(mine.live())
        await coordinator(broker, "a", "online")
        board = Mqtt(broker.url, "a", A, filters=())
        board.start()
        while not isinstance(await board.next(), Up):
            pass
        board.publish(build.birth(A), A)
        await until(lambda: A in mine._state.fleet.boards)
        decide = mine._decide

        def decided() -> None:
            seen.append(mine._state.fleet.boards[A].profile is not None)
            decide()

        async with absence.turns.turn(-math.inf):  # others decide
            monkeypatch.setattr(mine, "_decide", decided)
            board.publish(build.presence("online"), A)
            await until(lambda: absence.turns._waiting)
            board.publish(build.profile(build.chain()), A)
            await until(lambda: mine._mqtt.events.qsize())
            assert not seen
        await until(lambda: seen)
        await board.stop()
        mine.stop()
        await living

    asyncio.run(run())
    assert seen[0]


@both_kinds
def test_one_that_waits_leads_once_the_other_has_gone(
    broker: BrokerProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So two that are started again and again do not take turns."""
    caplog.set_level(logging.INFO, "shoal.coordinator.standby")
    url, store = "http://10.0.0.2:9000", Store(tmp_path / "second")

    async def wait() -> tuple[Service, asyncio.Task[None]]:
        caplog.clear()
        second = Service(broker.url, "a", url, store, Settings(), Absence(), patient=True)
        waiting = asyncio.ensure_future(second.live())
        for _ in range(round(WAIT_S / 0.1)):
            if caplog.text:
                break
            await asyncio.sleep(0.1)
        assert f"a: {URL} coordinates it" in caplog.text
        return second, waiting

    async def run() -> None:
        first = service(broker, "a", tmp_path / "first", Absence())
        leading = asyncio.ensure_future(first.live())
        before = await coordinator(broker, "a", "online")
        second, waiting = await wait()
        second.stop()
        await waiting
        second, waiting = await wait()
        assert await coordinator(broker, "a", "online") == before, "who comes and goes is not noticed"
        first.stop()
        await leading
        after = await coordinator(broker, "a", "online")
        assert after.url == url
        assert after.incarnation > before.incarnation
        second.stop()
        await waiting

    asyncio.run(run())


@both_kinds
def test_the_one_that_leads_answers_when_it_is_called(broker: BrokerProcess, tmp_path: Path) -> None:
    async def run() -> None:
        mine = service(broker, "a", tmp_path, Absence())
        living = asyncio.ensure_future(mine.live())
        found = await coordinator(broker, "a", "online")
        async with Operator(broker.url, "a") as operator:
            operator.view.cluster.pop(Coordinator)
            await operator.publish(Call(url="http://10.0.0.2:9000"))
            for _ in range(round(WAIT_S / 0.1)):
                if operator.view.coordinator is not None:
                    break
                await operator.next(0.1)
            assert operator.view.coordinator == found
        mine.stop()
        await living

    asyncio.run(run())


@both_kinds
def test_nonsense_is_refused_once_by_name_and_the_coordinator_goes_on(
    broker: BrokerProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A board that says nonsense at every turn fills no log, and keeps nobody from deciding."""
    caplog.set_level(logging.WARNING)
    profile = wire.encode(build.profile(build.chain()))
    spoilt = (
        profile.replace(b'"median_s":1.0', b'"median_s":NaN', 1),
        profile.replace(b'"median_s":1.0', b'"median_s":-1.0', 1),
        profile.replace(b'"memory_bytes":1073741824', b'"memory_bytes":1e999', 1),
        profile[:-20],
    )
    assert profile not in spoilt

    async def run() -> None:
        mine = service(broker, "a", tmp_path, Absence())
        living = asyncio.ensure_future(mine.live())
        await coordinator(broker, "a", "online")
        board = Mqtt(broker.url, "a", A, filters=())
        board.start()
        while not isinstance(await board.next(), Up):
            pass
        topic = wire.topic("a", Profile, A)
        for content in (*spoilt, *spoilt):
            board._client.publish(topic, content, qos=1)
        await board.sent(WAIT_S)
        board.publish(build.birth(A), A)
        board.publish(replace(build.profile(build.chain()), slowdown=math.pi), A)
        await board.sent(WAIT_S)
        async with Operator(broker.url, "a") as operator:
            for _ in range(round(WAIT_S / 0.1)):
                if operator.view.cluster.get(Decision) is not None:
                    break
                await operator.next(0.1)
            assert operator.view.cluster.get(Decision) is not None
        assert mine._state.fleet.boards[A].profile is not None
        assert mine._mqtt.refused == 2 * len(spoilt)
        await board.stop()
        mine.stop()
        await living

    asyncio.run(run())
    refusals = [
        record.getMessage() for record in caplog.records if "refused a message" in record.getMessage()
    ]
    assert len(refusals) == 1
    assert "shoal/v1/a/board/a/profile" in refusals[0]
    assert "median_s" in refusals[0]


def test_the_coordinator_serves_the_history_of_each_cluster(tmp_path: Path) -> None:
    files = {cluster: file_of(tmp_path, cluster) for cluster in ("a", "b")}
    kept = History(files["a"])
    kept.keep([entry(1), entry(2)])
    kept.write()
    kept.close()

    async def run() -> None:
        runner = web.AppRunner(Depot(Store(tmp_path), files).application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as http:
            assert await fetch_history(http, url, "a", 0.0, 0) == (entry(1), entry(2))
            assert await fetch_history(http, url, "b", 0.0, 0) == (), "nothing has happened there yet"
            with pytest.raises(BoardError, match="expected one of a, b"):
                await fetch_history(http, url, "c", 0.0, 0)
        await runner.cleanup()

    asyncio.run(run())


def test_who_cannot_reach_the_coordinator_is_told_when_another_one_leads(tmp_path: Path) -> None:
    async def send() -> None:
        async with aiohttp.ClientSession() as http:
            await client._put(http, f"http://127.0.0.1:{free_port()}/blobs/0", b"", tmp_path)

    with pytest.raises(BoardError, match=r"the coordinator does not answer: .*leads within 30 s"):
        asyncio.run(send())
