"""The coordinator is killed at any point of a switch, or cut off: no request fails, and one plan remains.

These take minutes: `make test-survival`.
"""

import asyncio
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.lab.processes import Cluster, Process
from shoal.messages import Coordinator, Decision, Deployment, Reported
from tests.real.client import Pictures, Trial, Watch
from tests.real.conftest import BOARDS, installed
from tests.real.test_trouble import obeyed, unharmed, wishes

pytestmark = [pytest.mark.survival, pytest.mark.timeout(600)]

RANDOM_KILLS = 10
LATEST_S = 1.5
"""A switch is over by then."""


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, undivided: Path, pictures: Pictures) -> Iterator[Trial]:
    """Three boards that share requests, on a broker that keeps what it retains."""
    installed("mosquitto")
    with Cluster(tmp_path_factory.mktemp("survival"), "mosquitto", margin=0.9) as cluster:
        for board in BOARDS:
            cluster.start_board(board)
        found = Trial(cluster=cluster, bundle=undivided, pictures=pictures, budget=None, boards=BOARDS)
        found.deploy("throughput")
        yield found


async def ask_for(watch: Watch, count: int) -> None:
    """Have the coordinator switch to a plan of no more than `count` boards (0: of any)."""
    known = watch.view.deployment
    assert isinstance(known, Deployment)
    await watch.operator.publish(replace(known, max_boards=count))


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
    return lambda: watch.view.coordinator != before


def decided(watch: Watch) -> Decision:
    found = watch.view.cluster[Decision]
    assert isinstance(found, Decision)
    return found


async def recovered(trial: Trial, watch: Watch, count: int) -> None:
    """Wait until one plan of `count` boards is in force, and all boards obey the newest coordinator."""

    def well() -> bool:
        plan, newest = watch.view.plan, watch.view.coordinator
        return (
            plan is not None
            and newest is not None
            and newest.state == "online"
            and obeyed(watch) == {newest.incarnation}
            and len(plan.boards) == count
            and {desired.committed for desired in wishes(watch)} == {plan.epoch}
            and all(
                (plan.epoch, "ready") in {(r.epoch, r.phase) for r in reported.epochs}
                for board in plan.boards
                if isinstance(reported := watch.view.boards[board].get(Reported), Reported)
            )
        )

    await watch.until(f"a plan of {count} boards under the new coordinator", well)
    assert trial.cluster.coordinator.running


def test_killed_at_any_point_of_a_switch(trial: Trial) -> None:
    chance = random.Random(7)
    named = [(name, chance.uniform(0, 0.03)) for name in ("prepare", "ready", "commit", "drain") * 2]
    anywhere = [("", chance.uniform(0, LATEST_S)) for _ in range(RANDOM_KILLS)]

    async def trouble(watch: Watch) -> None:
        count = 3
        for name, delay_s in named + anywhere:
            count = 5 - count  # 2 and 3 in turn
            await ask_for(watch, count)
            await moment(watch, name, watch.epochs[-1])
            await asyncio.sleep(delay_s)
            before = watch.view.coordinator
            trial.cluster.coordinator.kill()
            await asyncio.sleep(chance.choice((0.0, 0.5)))
            trial.cluster.start_coordinator()
            await watch.until("another coordinator", another(watch, before))
            await recovered(trial, watch, count)
        assert watch.epochs == sorted(set(watch.epochs)), "no plan comes back"

    unharmed(trial.under_load(trouble))


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
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            self.whole.wait()
            far = socket.create_connection(self._target)
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        with near, far:
            while not self._over.is_set():
                readable, _, _ = select.select([near, far], [], [], 0.1)
                self.whole.wait()
                for each in readable:
                    data = each.recv(65536)
                    if not data:
                        return
                    other[each].sendall(data)


@pytest.fixture
def relay(trial: Trial) -> Iterator[Relay]:
    found = Relay(int(trial.cluster.url.rpartition(":")[2]))
    yield found
    found.close()


def behind(trial: Trial, relay: Relay) -> Process:
    """Put a coordinator that reaches the broker by the relay in the place of the cluster's."""
    old = trial.cluster.coordinator
    command = [
        f"mqtt://127.0.0.1:{relay.port}" if word == trial.cluster.url else word for word in old.command
    ]
    old.kill()
    trial.cluster.coordinator = Process(command, trial.cluster.folder / "behind.log")
    return trial.cluster.coordinator


@pytest.mark.parametrize("cut_s", [3.0, 9.0, 20.0])
def test_cut_off_from_the_broker_it_judges_nobody(trial: Trial, relay: Relay, cut_s: float) -> None:
    async def trouble(watch: Watch) -> None:
        before = watch.view.coordinator
        behind(trial, relay)
        await watch.until("the one behind the relay", lambda: watch.view.coordinator != before)
        await watch.until("its decision", lambda: len(obeyed(watch)) == 1)
        await asyncio.sleep(1.5)
        told = list(watch.epochs)
        relay.whole.clear()
        await asyncio.sleep(cut_s)
        relay.whole.set()
        await asyncio.sleep(4.0)
        assert watch.epochs == told, "nothing had changed for the boards"

    unharmed(trial.under_load(trouble))


@pytest.mark.parametrize("cut_s", [2.0, 12.0])
def test_two_that_were_cut_off_from_each_other_end_as_one(trial: Trial, relay: Relay, cut_s: float) -> None:
    async def trouble(watch: Watch) -> None:
        before = watch.view.coordinator
        old = behind(trial, relay)
        await watch.until("the one behind the relay", lambda: watch.view.coordinator != before)
        await asyncio.sleep(1.5)
        relay.whole.clear()
        trial.cluster.start_coordinator()
        second = watch.view.coordinator
        await watch.until("the other one", lambda: watch.view.coordinator != second)
        newest = watch.view.coordinator
        count = 5 - len(watch.plans[-1].boards)
        await ask_for(watch, count)
        await watch.until("its plan", lambda: len(watch.plans[-1].boards) == count)
        await asyncio.sleep(cut_s)
        told = list(watch.epochs)
        relay.whole.set()
        assert await asyncio.to_thread(old.wait, 30.0) == 2
        await asyncio.sleep(1.0)
        assert watch.epochs == told, "the older one has put no plan in force"
        assert watch.view.coordinator == newest
        await recovered(trial, watch, count)

    unharmed(trial.under_load(trouble))
