"""The coordinator is killed at any point of a switch, or cut off: no request fails, and one plan remains.

These take minutes: `make test-survival`.
"""

import asyncio
import contextlib
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shoal.clock import wall_ms
from shoal.coordinator import client, memory
from shoal.coordinator.history import file_of, read
from shoal.coordinator.standing import GONE_S
from shoal.lab.processes import Cluster, Process
from shoal.messages import BundleSource, Coordinator, Decision, Reported
from shoal.records import Sha256
from tests.real.client import Pictures, Trial, Watch
from tests.real.conftest import BOARDS, exported, installed
from tests.real.test_trouble import obeyed, unharmed, wishes

pytestmark = [pytest.mark.survival, pytest.mark.timeout(600)]

RANDOM_KILLS = 10
LATEST_S = 2.5
"""A switch is over by then."""


@dataclass(kw_only=True)
class Torn(Trial):
    """A cluster with two versions of the model: to deploy the other one forces a switch of several boards."""

    sources: list[BundleSource]

    async def deploy_other(self, watch: Watch) -> Sha256:
        """Have the coordinator switch to the version that is not deployed, and return which that is."""
        known = watch.view.deployment
        assert known is not None
        other = next(source for source in self.sources if source.manifest != known.bundle.manifest)
        await watch.operator.publish(replace(known, bundle=other))
        return other.manifest


@pytest.fixture(scope="module")
def trial(
    tmp_path_factory: pytest.TempPathFactory,
    bundle: tuple[Path, object],
    pictures: Pictures,
    budget: int,
) -> Iterator[Torn]:
    """Three boards, none of which can hold the model alone, on a broker that keeps what it retains."""
    installed("mosquitto")
    other = tmp_path_factory.mktemp("other") / "vit"
    exported(other, max_segments=4)
    with Cluster(tmp_path_factory.mktemp("survival"), "mosquitto", margin=0.9) as cluster:
        for board in BOARDS:
            cluster.start_board(board, memory_bytes=budget)
        found = Torn(
            cluster=cluster, bundle=other, pictures=pictures, budget=budget, boards=BOARDS, sources=[]
        )

        async def upload(watch: Watch) -> None:
            url = client.coordinator_url(watch.view)
            found.sources = [await client.upload(watch.http, url, each) for each in (other, bundle[0])]

        found.deploy("latency")
        found.watch(upload)
        yield found


async def moment(watch: Watch, name: str, epoch: int) -> None:
    """Wait for a moment of the switch from the plan of that epoch, if it comes."""

    def ready() -> bool:
        wanted = decided(watch).wanted
        found = [watch.view.boards[board].get(Reported) for board in BOARDS]
        return bool(wanted) and any(
            isinstance(reported, Reported)
            and (wanted, "ready") in {(r.epoch, r.phase) for r in reported.epochs}
            for reported in found
        )

    holds = {
        "prepare": lambda: decided(watch).wanted > epoch,
        "ready": lambda: ready() or watch.epochs[-1] > epoch,
        "commit": lambda: watch.epochs[-1] > epoch,
        "drain": lambda: watch.epochs[-1] > epoch,
    }
    if name in holds:
        until = asyncio.get_running_loop().time() + 5
        while not holds[name]() and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0)  # the listener of the watch has its turn
    if name == "drain":
        await asyncio.sleep(0.5)


def another(watch: Watch, before: Coordinator | None) -> Callable[[], bool]:
    """Return whether a coordinator is there that is not the one of before."""

    def there() -> bool:
        now = watch.view.coordinator
        return now is not None and now.state == "online" and (before is None or now.url != before.url)

    return there


def decided(watch: Watch) -> Decision:
    found = watch.view.cluster[Decision]
    assert isinstance(found, Decision)
    return found


async def recovered(trial: Torn, watch: Watch, bundle: Sha256) -> None:
    """Wait until one plan of `bundle` is in force, and all boards obey the newest coordinator."""

    def well() -> bool:
        plan, newest = watch.view.plan, watch.view.coordinator
        return (
            plan is not None
            and newest is not None
            and newest.state == "online"
            and obeyed(watch) == {newest.incarnation}
            and plan.bundle == bundle
            and {desired.committed for desired in wishes(watch).values()} == {plan.epoch}
            and all(
                (plan.epoch, "ready") in {(r.epoch, r.phase) for r in reported.epochs}
                for board in plan.boards
                if isinstance(reported := watch.view.boards[board].get(Reported), Reported)
            )
        )

    await watch.until("the plan of what is deployed, under the new coordinator", well)
    assert trial.cluster.coordinator.running


def test_killed_at_any_point_of_a_switch(trial: Torn) -> None:
    chance = random.Random(7)
    named = [(name, chance.uniform(0, 0.03)) for name in ("prepare", "ready", "commit", "drain") * 2]
    anywhere = [("", chance.uniform(0, LATEST_S)) for _ in range(RANDOM_KILLS)]

    hits = {"prepared": 0, "committed": 0}

    async def trouble(watch: Watch) -> None:
        for name, delay_s in named + anywhere:
            epoch = watch.epochs[-1]
            wanted = await trial.deploy_other(watch)
            await moment(watch, name, epoch)
            await asyncio.sleep(delay_s)
            before = watch.view.coordinator
            hits["prepared"] += bool(decided(watch).wanted)
            hits["committed"] += watch.epochs[-1] > epoch
            trial.cluster.coordinator.kill()
            await asyncio.sleep(chance.choice((0.0, 0.5)))
            trial.cluster.start_coordinator()
            await watch.until("another coordinator", another(watch, before))
            await recovered(trial, watch, wanted)
        assert watch.epochs == sorted(set(watch.epochs)), "no plan comes back"

    unharmed(trial.under_load(trouble))
    assert min(hits.values()) >= 4, f"too few kills were in the middle of a switch: {hits}"


class Relay:
    """A way to the broker that can be cut like a cable: what is sent meanwhile waits in between."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.whole = threading.Event()
        self.whole.set()
        self._over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self.whole.set()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        self.whole.wait()
        with contextlib.suppress(OSError), near, socket.create_connection(self._target) as far:
            other = {near: far, far: near}
            while not self._over.is_set():
                readable, _, _ = select.select([near, far], [], [], 0.1)
                self.whole.wait()
                for each in readable:
                    data = each.recv(65536)
                    if not data:
                        return
                    other[each].sendall(data)


@pytest.fixture
def relay(trial: Torn) -> Iterator[Relay]:
    found = Relay(int(trial.cluster.url.rpartition(":")[2]))
    yield found
    trial.cluster.coordinator.kill()  # the next test has one that does not need the relay
    found.close()


def behind(trial: Torn, relay: Relay) -> Process:
    """Put a coordinator that reaches the broker by the relay in the place of the cluster's."""
    old = trial.cluster.coordinator
    command = list(old.command)
    command[command.index("--broker") + 1] = f"mqtt://127.0.0.1:{relay.port}"
    old.kill()
    trial.cluster.coordinator = Process(command, trial.cluster.folder / "behind.log")
    return trial.cluster.coordinator


@pytest.mark.parametrize("cut_s", [3.0, 9.0, 20.0])
def test_cut_off_from_the_broker_it_judges_nobody(trial: Torn, relay: Relay, cut_s: float) -> None:
    async def trouble(watch: Watch) -> None:
        before = watch.view.coordinator
        behind(trial, relay)
        await watch.until("the one behind the relay", another(watch, before))
        await asyncio.sleep(2.0)
        begun_s = wall_ms() / 1e3
        relay.whole.clear()
        await asyncio.sleep(cut_s)
        relay.whole.set()
        await asyncio.sleep(4.0)
        noted = read(file_of(trial.cluster.folder / "coordinator", "default"), begun_s)
        assert not [entry.words for entry in noted if "lost" in entry.words], "it was itself that was lost"

    unharmed(trial.under_load(trouble))


@pytest.mark.parametrize("cut_s", [2.0, 12.0])
def test_two_that_were_cut_off_from_each_other_end_as_one(trial: Torn, relay: Relay, cut_s: float) -> None:
    async def trouble(watch: Watch) -> None:
        before = watch.view.coordinator
        old = behind(trial, relay)
        await watch.until("the one behind the relay", another(watch, before))
        await asyncio.sleep(1.5)
        relay.whole.clear()
        trial.cluster.start_coordinator()
        second = watch.view.coordinator
        await watch.until("the other one", another(watch, second))
        newest = watch.view.coordinator
        wanted = await trial.deploy_other(watch)
        await watch.until("its plan", lambda: watch.plans[-1].bundle == wanted)
        await asyncio.sleep(cut_s)
        told = old.log.read_text().count(" epoch ")
        relay.whole.set()
        assert await asyncio.to_thread(old.wait, 30.0) == 2
        await asyncio.sleep(1.0)
        assert old.log.read_text().count(" epoch ") == told, "it has put no plan in force"
        assert watch.epochs == sorted(watch.epochs)
        assert watch.view.coordinator == newest
        await recovered(trial, watch, wanted)

    unharmed(trial.under_load(trouble))


def test_frozen_while_another_came_and_went_it_leads_again(trial: Torn) -> None:
    async def trouble(watch: Watch) -> None:
        await watch.until("a coordinator", another(watch, None))
        first, known = trial.cluster.coordinator, watch.view.coordinator
        first.freeze()
        trial.cluster.start_coordinator()
        await watch.until("another coordinator", another(watch, known))
        second = watch.view.coordinator
        assert second is not None
        await watch.until("all boards to obey it", lambda: obeyed(watch) == {second.incarnation})
        trial.cluster.coordinator.kill()
        trial.cluster.coordinator = first
        first.thaw()
        await watch.until("the first one", another(watch, second))
        assert known is not None
        assert watch.view.coordinator is not None
        assert watch.view.coordinator.url == known.url
        await recovered(trial, watch, await trial.deploy_other(watch))

    unharmed(trial.under_load(trouble))


def test_two_that_are_started_again_and_again_do_not_take_turns(trial: Torn) -> None:
    def waits(found: Process, times: int) -> Callable[[], bool]:
        return lambda: found.log.read_text().count("coordinates it") >= times

    async def trouble(watch: Watch) -> None:
        await watch.until("a coordinator", another(watch, None))
        first, leads, log = (
            trial.cluster.coordinator,
            watch.view.coordinator,
            trial.cluster.folder / "second.log",
        )
        epochs = list(watch.epochs)
        for times in (1, 2, 3):
            second = Process(first.command, log)
            await watch.until("the second one to wait", waits(second, times))
            if times < 3:
                second.kill()
        await asyncio.sleep(GONE_S + 1.0)
        assert watch.view.coordinator == leads, "it answers"
        first.kill()
        await watch.until("the second one to lead", another(watch, leads))
        newest = watch.view.coordinator
        assert newest is not None
        trial.cluster.start_coordinator()
        await watch.until("the first one to wait", waits(trial.cluster.coordinator, 1))
        await watch.until("all boards to obey the second", lambda: obeyed(watch) == {newest.incarnation})
        await asyncio.sleep(GONE_S + 1.0)
        assert watch.view.coordinator == newest
        assert watch.epochs == epochs, "nobody has noticed"
        second.kill()
        await watch.until("the first one to lead again", another(watch, newest))

    unharmed(trial.under_load(trouble))


def test_a_clock_that_was_set_back_silences_no_coordinator(
    tmp_path: Path, undivided: Path, pictures: Pictures
) -> None:
    """Broker and coordinator have forgotten everything; only the board knows of a time yet to come."""
    ahead = wall_ms() + 10**9
    folder = tmp_path / "cluster" / "coordinator"
    folder.mkdir(parents=True)
    memory.file_of(folder, "default").write_text(f'{{"incarnation":{ahead},"deployment":null,"plan":null}}')
    with Cluster(tmp_path / "cluster", "embedded", margin=0.9) as cluster:
        cluster.start_board(BOARDS[0])
        trial = Trial(cluster=cluster, bundle=undivided, pictures=pictures, budget=None, boards=BOARDS[:1])
        trial.deploy("latency")

        async def look(watch: Watch) -> None:
            await watch.until("the first coordinator", lambda: obeyed(watch) == {ahead + 1})
            cluster.broker.kill()
            cluster.coordinator.kill()
            memory.file_of(folder, "default").unlink()
            cluster.start_broker()
            cluster.start_coordinator()
            watch.view.boards.clear()
            await watch.until("the second coordinator", lambda: max(obeyed(watch), default=0) > ahead + 1)
            newest = watch.view.coordinator
            await watch.until("its wishes", lambda: BOARDS[0] in wishes(watch))
            assert newest is not None
            assert {newest.incarnation} == obeyed(watch)

        trial.watch(look)
