"""Links are kept true by what crosses them, and probed only where and when that is due."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from shoal.agent import link_watch
from shoal.agent.link_state import SURE
from shoal.agent.link_watch import FLOWS, LinkWatch
from shoal.agent.peers import ExchangeError, Peers
from shoal.messages import Airtime
from shoal.profiler import airtime, tcp_info
from shoal.profiler.airtime import HOLD_S, Air
from shoal.profiler.goodput import Transfer
from shoal.profiler.tcp_info import TcpInfo
from shoal.records import BoardId
from tests.build import A, B, C

PLAIN = replace(tcp_info.parse(bytes(240)), app_limited=False)


class Net:
    """Links of board A in made-up time, which goes by while pings take it."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.rate = 12.5e6
        self.rtt_s = 0.004
        self.silent: set[BoardId] = set()
        self.sent: list[tuple[float, BoardId, int]] = []
        self.told = 0
        self.said: list[Airtime] = []
        self.info_now: TcpInfo | None = PLAIN
        self.random = random.Random(0)
        self.noise: Callable[[], float] = lambda: 0.0
        self.dozes = False
        self.in_the_air = False
        self.flows = 0
        self.watch = LinkWatch(A, 1, cast(Peers, self), self._tell, self._say)

    def _tell(self) -> None:
        self.told += 1

    def _say(self, message: Airtime) -> bool:
        self.said.append(message)
        self.watch.air(A, message)
        return True

    def info(self, _peer: BoardId) -> TcpInfo | None:
        return self.info_now

    def ping(self, peer: BoardId, size_bytes: int, _timeout_s: float) -> float:
        if peer in self.silent:
            self.now_s += 3.0
            raise ExchangeError(peer, "silent")
        took_s = self.rtt_s + size_bytes / self.rate + self.noise()
        if self.dozes and self.now_s - (self.sent[-1][0] if self.sent else 0.0) > 0.2:
            took_s += self.random.uniform(0, 0.1024)
        self.now_s += took_s
        self.sent.append((self.now_s, peer, size_bytes))
        return took_s

    def flow(
        self, peer: BoardId, size_bytes: int, count: int, _timeout_s: float, *, both_ways: bool
    ) -> float:
        rate = self.rate / 2 if both_ways and self.in_the_air else self.rate
        self.now_s += count * size_bytes / rate
        self.sent.append((self.now_s, peer, (1 + both_ways) * count * size_bytes))
        self.flows += 1
        return rate

    def load(self, peer: BoardId, seconds: float, size_bytes: int = 65_536, flows: int = 1) -> float | None:
        """Send tensors to `peer` for a while, about ten a second; return when the news was told.

        So many flows share the receiver's cable.
        """
        until_s, told, news_s = self.now_s + seconds, self.told, None
        while self.now_s < until_s:
            self.now_s += 0.1
            seconds_each = flows * size_bytes / self.rate
            self.watch.heard(peer, Transfer(size_bytes=size_bytes, seconds=seconds_each, flows=flows))
            if self.told > told and news_s is None:
                news_s = self.now_s
        return news_s

    def mbit_per_s(self, peer: BoardId = B) -> float:
        return self.watch.links[peer].goodput_bytes_per_s * 8e-6


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    found = Net()
    monkeypatch.setattr(link_watch, "time", SimpleNamespace(monotonic=lambda: found.now_s))
    return found


def test_a_new_link_is_probed_and_told(net: Net) -> None:
    net.watch.probe(B)
    found = net.watch.links[B]
    assert found.rtt_s == pytest.approx(0.004, rel=0.01)
    assert found.rtt_p95_s == pytest.approx(0.004, rel=0.01)
    assert net.mbit_per_s() == pytest.approx(100.0, rel=0.01)
    assert net.told == 1


def test_a_new_link_that_seemed_slow_is_looked_at_again_soon(net: Net) -> None:
    net.rate, net.rtt_s = 2e6, 0.02  # its board has just begun, and has much to do
    run(net, 1.0, frozenset({B}))
    assert net.mbit_per_s() == pytest.approx(16.0, rel=0.05)
    net.rate, net.rtt_s = 12.5e6, 0.004
    run(net, 3.0, frozenset({B}))
    assert net.mbit_per_s() == pytest.approx(100.0, rel=0.02)
    assert net.watch.links[B].rtt_s == pytest.approx(0.004, rel=0.02)


def test_schedulers_of_busy_machines_are_no_part_of_a_round_trip(net: Net) -> None:
    """Each of four threads on the way is late now and then, so most trips take some milliseconds more."""

    def late_s() -> float:
        return sum(net.random.expovariate(1e3) for _ in range(4) if net.random.random() < 0.3)

    net.noise = late_s
    for _ in range(100):
        net.watch.probe(B)
        assert net.watch.links[B].rtt_s == pytest.approx(0.004, rel=0.1)
        net.now_s += 10.0


def test_a_peer_whose_radio_dozes_is_told_and_so_is_that_it_no_longer_does(net: Net) -> None:
    net.watch.probe(B)
    assert not net.watch.links[B].dozing
    net.dozes = True
    run(net, 120.0, frozenset({B}))
    assert net.watch.links[B].dozing
    assert net.watch.links[B].rtt_s == pytest.approx(0.004, rel=0.02)
    [note] = net.watch.notes
    assert "b after a pause waits for a beacon" in note
    net.dozes = False
    run(net, 180.0, frozenset({B}))
    assert not net.watch.notes


@pytest.mark.parametrize("in_the_air", [True, False])
def test_a_link_is_judged_when_it_is_new_and_after_an_alarm_and_not_each_time(
    net: Net, in_the_air: bool
) -> None:
    net.in_the_air = in_the_air
    run(net, 60.0, frozenset({B}))
    assert net.watch.links[B].shared is in_the_air
    assert net.flows == 2 * FLOWS
    assert net.told == 2
    net.load(B, 30.0)
    net.rate, net.in_the_air = 1.25e6, not in_the_air
    net.load(B, 1.0)
    run(net, 60.0, frozenset({B}))
    assert net.watch.links[B].shared is not in_the_air
    assert net.flows == 4 * FLOWS


@pytest.mark.parametrize("rate", [1e4, 200e6])
def test_a_link_too_slow_or_fast_to_tell_is_not_judged(net: Net, rate: float) -> None:
    net.rate = rate
    run(net, 60.0, frozenset({B}))
    assert net.watch.links[B].shared is None
    assert net.flows == 0


def test_a_drop_under_load_is_told_within_a_second(net: Net) -> None:
    net.watch.probe(B)
    net.load(B, 30.0)
    assert net.told == 1, "all is as it was"
    net.rate = 1.25e6
    begun_s = net.now_s
    news_s = net.load(B, 2.0)
    assert news_s is not None
    assert news_s - begun_s < 1.0
    assert net.mbit_per_s() == pytest.approx(10.0, rel=0.02)


def test_what_comes_to_a_board_at_once_with_others_does_not_make_a_link_slow(net: Net) -> None:
    net.watch.probe(B)
    net.load(B, 5.0)
    due_s = net.watch._links[B].due_s
    net.load(B, 30.0, flows=3)
    assert net.told == 1
    assert net.watch._links[B].due_s == due_s, "and nobody looks into it"


def test_a_drop_is_looked_into_though_a_crowd_explains_a_part_of_it(net: Net) -> None:
    net.watch.probe(B)
    net.load(B, 30.0, flows=3)
    net.rate = 1.25e6
    net.load(B, 1.0, flows=3)
    assert net.watch._links[B].due_s <= net.now_s
    net.watch.probe(B)
    assert net.mbit_per_s() == pytest.approx(10.0, rel=0.05)


def test_a_queue_that_lets_much_pass_for_a_moment_does_not_make_a_link_fast(net: Net) -> None:
    """The kernel saw 18 MB/s over a round trip, and the receiver read at 10 MB/s because it was late."""
    net.watch.probe(B)
    net.info_now = replace(PLAIN, delivery_rate=18_000_000)
    net.rate = 10e6
    net.load(B, 60.0)
    assert net.told == 1


def test_without_an_alarm_a_link_is_as_fast_as_its_fastest_transfers_of_late(net: Net) -> None:
    """Nine of ten transfers to a new link are half as fast as it is, and of other sizes than the tenth."""
    net.watch.probe(B)
    for number in range(80):
        net.rate = 12.5e6 if number % 10 == 0 else 6e6
        net.load(B, 0.1, size_bytes=65_536 if number % 2 else 131_072)
        run(net, 0.01, frozenset({B}))
    assert net.mbit_per_s() == pytest.approx(100.0, rel=0.05)
    net.rate = 7e6
    for _ in range(80):
        net.load(B, 0.1)
        run(net, 0.01, frozenset({B}))
    assert net.mbit_per_s() == pytest.approx(56.0, rel=0.05)


def test_one_probe_beside_other_work_does_not_make_a_link_slow(net: Net) -> None:
    net.watch.probe(B)
    pings: list[float] = []

    def crowded() -> float:
        pings.append(net.now_s)
        return 0.05 if len(pings) < 16 else 0.0

    net.noise = crowded
    net.watch.probe(B)
    assert len(pings) > 16
    assert net.mbit_per_s() == pytest.approx(100.0, rel=0.05)


def bring(net: Net, rate: float, count: int, flows: int = 1) -> None:
    """Let tensors come from b, about ten a second."""
    for _ in range(count):
        net.now_s += 0.1
        net.watch.came(B, Transfer(size_bytes=65_536, seconds=65_536 / rate, flows=flows))


def test_a_link_whose_other_way_became_slow_is_taken_for_slow_until_it_is_probed(net: Net) -> None:
    net.watch.probe(B)
    bring(net, 4e6, 20, flows=2)
    assert net.told == 1, "two boards share our cable"
    bring(net, 0.6e6, 8)
    assert net.told == 2
    assert net.mbit_per_s() == pytest.approx(4.8, rel=0.02)
    assert net.watch._links[B].due_s <= net.now_s
    net.watch.probe(B)
    assert net.mbit_per_s() == pytest.approx(100.0, rel=0.02)


def test_what_is_sent_knows_better_how_fast_it_goes_than_what_comes(net: Net) -> None:
    net.watch.probe(B)
    net.load(B, 3.0)
    bring(net, 0.6e6, 8)
    assert net.told == 1


def test_a_link_that_is_slow_one_way_only_is_probed_for_that_once(net: Net) -> None:
    net.watch.probe(B)
    bring(net, 0.6e6, 8)
    net.watch.probe(B)
    assert net.mbit_per_s() == pytest.approx(100.0, rel=0.02)
    told = net.told
    bring(net, 0.6e6, 40)
    assert net.told == told


def test_a_link_that_was_not_used_before_is_found_slow_within_a_second(net: Net) -> None:
    net.watch.probe(B)
    net.rate = 0.6e6
    net.load(B, 0.6)
    run(net, 0.01, frozenset({B}))
    assert net.mbit_per_s() == pytest.approx(4.8, rel=0.02)


def test_an_idle_link_that_seems_a_little_slower_is_looked_at_again_before_it_is_told(net: Net) -> None:
    for _ in range(3):
        net.watch.probe(B)
    told = net.told
    net.rate = 9e6
    begun_s = net.now_s
    net.watch.probe(B)
    assert net.told == told
    wait_s = (net.now_s - begun_s) / link_watch.SHARE
    assert wait_s > link_watch.CONFIRM_S
    assert net.watch._links[B].due_s == pytest.approx(net.now_s + wait_s)
    net.rate = 12.5e6
    net.watch.probe(B)
    net.rate = 9e6
    for _ in range(SURE - 1):
        net.watch.probe(B)
        assert net.told == told
    net.watch.probe(B)
    assert net.told == told + 1
    assert net.mbit_per_s() == pytest.approx(72.0, rel=0.02)
    net.rate = 2e6
    net.watch.probe(B)
    assert net.told == told + 2, "what is slower by much is told at once"


def test_a_link_in_use_is_only_asked_for_its_round_trip(net: Net) -> None:
    net.watch.probe(B)
    net.load(B, 5.0)
    count = len(net.sent)
    net.watch.probe(B)
    assert {size for _, _, size in net.sent[count:]} == {64}


def test_a_change_of_a_link_that_then_falls_silent_asks_for_a_probe(net: Net) -> None:
    net.watch.probe(B)
    net.load(B, 30.0)
    net.rate = 1.25e6
    net.load(B, 0.6)
    net.rate = 2.5e6
    count = len(net.sent)
    run(net, 20.0, frozenset({B}))
    assert max(size for _, _, size in net.sent[count:]) >= 32 * 1024
    assert net.mbit_per_s() == pytest.approx(20.0, rel=0.02)


def test_a_ping_that_waits_behind_tensors_is_no_longer_round_trip(net: Net) -> None:
    net.watch.probe(B)
    net.info_now = replace(PLAIN, min_rtt_us=4000)
    net.rtt_s = 0.050
    for _ in range(3):
        net.load(B, 5.0)
        net.watch.probe(B)
    assert net.watch.links[B].rtt_s == pytest.approx(0.004, rel=0.02)
    net.info_now = replace(PLAIN, min_rtt_us=50_000)
    for _ in range(3):
        net.load(B, 5.0)
        net.watch.probe(B)
    assert net.watch.links[B].rtt_s == pytest.approx(0.050, rel=0.02)


def test_what_had_no_more_to_send_does_not_make_a_link_slow(net: Net) -> None:
    net.watch.probe(B)
    net.info_now = replace(PLAIN, app_limited=True)
    net.rate = 1e6
    net.load(B, 30.0)
    assert net.told == 1
    net.rate = 50e6
    net.load(B, 30.0)
    assert net.told == 1, "faster transfers are news only to the loop that looks at them"


def test_transfers_that_are_much_slower_though_there_was_no_more_to_send_ask_for_one_probe(net: Net) -> None:
    net.watch.probe(B)
    net.load(B, 3.0)
    net.info_now = replace(PLAIN, app_limited=True)
    due_s = net.watch._links[B].due_s
    net.rate = 5e6
    net.load(B, 1.0)
    assert net.watch._links[B].due_s == due_s, "two and a half times may be the slow start of TCP"
    net.rate = 0.6e6
    net.load(B, 0.5)
    assert net.watch._links[B].due_s <= net.now_s
    net.watch.probe(B)
    assert net.mbit_per_s() == pytest.approx(4.8, rel=0.1)
    assert net.told == 2


def test_a_suspicion_that_a_probe_does_not_share_is_not_raised_again(net: Net) -> None:
    net.watch.probe(B)
    net.info_now = replace(PLAIN, app_limited=True)
    net.rate = 0.6e6
    net.load(B, 0.5)
    net.rate = 12.5e6
    net.watch.probe(B)
    due_s = net.watch._links[B].due_s
    net.rate = 0.6e6
    net.load(B, 2.0)
    assert net.watch._links[B].due_s == due_s
    net.rate = 0.1e6
    net.load(B, 0.5)
    assert net.watch._links[B].due_s <= net.now_s


def test_a_receiver_that_does_not_take_what_comes_is_no_slow_link(net: Net) -> None:
    net.watch.probe(B)
    net.rate = 1e6
    for step in range(100):
        net.info_now = replace(PLAIN, busy_us=1000 * step, rwnd_limited_us=900 * step)
        net.load(B, 0.1)
    assert net.told == 1


def test_a_receiver_that_reads_late_is_no_slow_link(net: Net) -> None:
    """Its program took 50 ms for what the kernel had acknowledged at 12.5 MB/s."""
    net.watch.probe(B)
    net.info_now = replace(PLAIN, delivery_rate=12_500_000)
    net.rate = 1.25e6
    net.load(B, 30.0)
    assert net.told == 1
    net.info_now = replace(PLAIN, delivery_rate=1_250_000)
    assert net.load(B, 2.0) is not None


def test_a_link_over_which_nothing_comes_back_is_forgotten_and_found_again(net: Net) -> None:
    net.watch.probe(B)
    net.silent.add(B)
    net.watch.probe(B)
    assert net.watch.links == {}
    net.silent.clear()
    net.watch.probe(B)
    assert net.mbit_per_s() == pytest.approx(100.0, rel=0.01)
    assert net.told == 3


def run(net: Net, seconds: float, peers: frozenset[BoardId]) -> None:
    """Let the loop run in made-up time."""
    real_sleep = asyncio.sleep

    async def sleep(duration_s: float) -> None:
        net.now_s += duration_s
        await real_sleep(0)

    async def here(function: object, *arguments: object) -> None:
        function(*arguments)  # type: ignore[operator]

    async def life() -> None:
        task = asyncio.ensure_future(net.watch.run(lambda: peers))
        until_s = net.now_s + seconds
        while net.now_s < until_s:
            await real_sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "sleep", sleep)
        patch.setattr(asyncio, "to_thread", here)
        asyncio.run(life())


def test_probes_take_a_hundredth_of_the_time_at_most(net: Net) -> None:
    net.rate = 0.5e6
    begun_s = net.now_s
    run(net, 600.0, frozenset({B}))
    took_s = sum(net.rtt_s + size / net.rate for _, _, size in net.sent)
    assert took_s / (net.now_s - begun_s) < 0.011
    assert len({at_s for at_s, _, size in net.sent if size > 64}) >= 5


def test_links_are_probed_one_after_the_other_and_those_gone_are_forgotten(net: Net) -> None:
    run(net, link_watch.CONFIRM_S, frozenset({B, C}))
    assert net.watch.links.keys() == {B, C}
    order = [peer for _, peer, _ in net.sent]
    assert order == sorted(order)
    run(net, 5.0, frozenset({C}))
    assert net.watch.links.keys() == {C}


def test_nobody_probes_while_another_has_the_air(net: Net) -> None:
    net.watch.air(C, Airtime(incarnation=1, number=1, state="wanted"))
    run(net, 4.0, frozenset({B}))
    assert net.sent == []
    net.watch.air(C, Airtime(incarnation=1, number=1, state="over"))
    run(net, 4.0, frozenset({B}))
    assert net.sent


def test_one_turn_is_for_all_links_that_are_due_as_far_as_it_goes(net: Net) -> None:
    """All boards hear of each turn, so one for each link would be a flood in a large cluster."""
    peers = frozenset(BoardId(f"b{number}") for number in range(8))
    run(net, 60.0, peers)
    net.said.clear()
    probes, begun_s = len(net.sent), net.now_s
    run(net, 40.0, peers)
    turns = [message.number for message in net.said if message.state == "wanted"]
    assert len({peer for _, peer, _ in net.sent[probes:]}) == len(peers)
    assert len(turns) <= (net.now_s - begun_s) / link_watch.PERIOD_S + 1
    assert [message.number for message in net.said if message.state == "over"] == turns
    net.rate = 5e4
    run(net, 30.0, peers)
    slow = [message for message in net.said if message.state == "wanted"][len(turns) :]
    assert len(slow) > 1, "a turn on slow links is not so long that nobody else gets one"


# --- whose turn it is ---------------------------------------------------------------------------


def said(air: Air, board: BoardId, number: int, state: str, now_s: float = 0.0) -> Air:
    message = Airtime(incarnation=1, number=number, state=state)  # type: ignore[arg-type]
    return airtime.heard(air, board, message, now_s)


def test_first_come_first_served() -> None:
    air = said(said(Air(), A, 1, "wanted"), B, 1, "wanted")
    assert airtime.holder(air, 0.1)[1] == (A, 1, 1)
    assert airtime.holder(said(air, A, 1, "over"), 0.1)[1] == (B, 1, 1)
    assert airtime.holder(said(air, B, 1, "over"), 0.1)[1] == (A, 1, 1)


def test_who_does_not_come_back_is_passed_over() -> None:
    air = said(said(Air(), A, 1, "wanted"), B, 1, "wanted")
    air, first = airtime.holder(air, HOLD_S + 0.1)
    assert first == (B, 1, 1)
    assert airtime.holder(air, HOLD_S + 0.2)[1] == (B, 1, 1)
    assert airtime.holder(air, 3 * HOLD_S)[1] is None


def test_a_board_has_one_claim_its_newest() -> None:
    air = said(said(said(Air(), A, 1, "wanted"), B, 1, "wanted"), A, 2, "wanted")
    assert [claim[0] for claim in air.queue] == [B, A]
    assert airtime.holder(said(air, A, 1, "over"), 0.0)[1] == (B, 1, 1)
