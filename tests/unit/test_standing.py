"""Who leads when there are several coordinators, and when one may judge boards."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.coordinator import standing
from shoal.coordinator.standing import (
    CALL_S,
    GONE_S,
    PATIENCE_S,
    PAUSE_S,
    SILENCE_S,
    Attention,
    Standby,
    Verdict,
)
from shoal.messages import Coordinator

State = Literal["online", "left", "lost"]


def who(incarnation: int, url: str = "http://me", state: State = "online") -> Coordinator:
    return Coordinator(incarnation=incarnation, state=state, url=url)


@pytest.mark.parametrize(
    ("other", "begun", "expected"),
    [
        (who(5), True, "go on"),
        (who(5, state="lost"), True, "say again"),  # the last will of an earlier connection of ours
        (who(4, "http://other"), True, "say again"),
        (who(4, "http://other", "left"), True, "say again"),
        (who(4, "http://other"), False, "go on"),
        (who(6, "http://other"), True, "yield"),
        (who(6, "http://other"), False, "outbid"),
        (who(6, "http://other", "lost"), True, "outbid"),
        (who(5, "http://a"), True, "yield"),
        (who(5, "http://z"), True, "outbid"),
    ],
)
def test_the_newer_leads(other: Coordinator, begun: bool, expected: Verdict) -> None:
    assert standing.verdict(who(5), other, begun=begun) == expected


# --- several, in any order of what happens -----------------------------------------------------------


@dataclass(kw_only=True)
class Member:
    """A coordinator, as far as others can tell."""

    me: Coordinator
    begun: bool = False
    rival: Coordinator | None = None
    contradicted: bool = False
    inbox: deque[Coordinator | None] = field(default_factory=deque)
    """None: all that was retained has come."""
    connected: bool = False
    frozen: bool = False
    gone: bool = False


class Broker:
    """One cluster's coordinators and what the broker retains of them."""

    def __init__(self) -> None:
        self.retained: Coordinator | None = None
        self.members: list[Member] = []

    def publish(self, message: Coordinator) -> None:
        self.retained = message
        for member in self.members:
            if member.connected:
                member.inbox.append(message)

    def start(self, incarnation: int) -> None:
        member = Member(me=who(incarnation, f"http://{len(self.members)}"))
        self.members.append(member)
        self.connect(member)

    def connect(self, member: Member) -> None:
        if not member.connected and not member.gone:
            member.connected, member.rival = True, None
            member.inbox = deque([self.retained] if self.retained else [])
            member.inbox.append(None)

    def lose(self, member: Member) -> None:
        """The connection breaks: what was on its way is gone, and the broker publishes the last will."""
        if member.connected:
            member.connected = False
            self.publish(replace(member.me, state="lost"))

    def die(self, member: Member) -> None:
        self.lose(member)
        member.gone = True

    def step(self, member: Member) -> None:
        """Have it take the next message, as the service does; one that was cut off may still take some."""
        if member.gone or member.frozen or not member.inbox:
            return
        message = member.inbox.popleft()
        if message is None:
            if member.rival is None:
                member.begun = True
                self.say(member)
        else:
            self.hear(member, message)
        heard_all = member.connected and (message is None or not member.inbox)
        if heard_all and member.rival is not None:
            member.gone, member.connected = True, False
        elif heard_all and member.contradicted:
            self.say(member)

    def hear(self, member: Member, message: Coordinator) -> None:
        if member.rival is not None:
            member.rival = standing.follow(member.rival, message)
            if member.rival is None:
                self.outbid(member, message)
            return
        verdict = standing.verdict(member.me, message, begun=member.begun)
        if verdict == "yield":
            member.rival = message
        elif verdict == "outbid":
            self.outbid(member, message)
        elif verdict == "say again":
            member.contradicted = True

    def outbid(self, member: Member, message: Coordinator) -> None:
        member.me = replace(member.me, incarnation=message.incarnation + 1)
        if member.begun:
            self.say(member)

    def say(self, member: Member) -> None:
        member.contradicted = False
        if member.connected:
            self.publish(member.me)

    def settle(self) -> None:
        """Thaw and connect all, and let them take all that comes."""
        for member in self.members:
            member.frozen = False
            self.connect(member)
        for _ in range(500):
            waiting = [member for member in self.members if member.inbox and not member.gone]
            if not waiting:
                return
            for member in waiting:
                self.step(member)
        raise AssertionError("they never stop talking")


def of(number: int, do: Callable[[Broker, Member], None]) -> Callable[[Broker], None]:
    def event(broker: Broker) -> None:
        if broker.members:
            do(broker, broker.members[number % len(broker.members)])

    return event


def freeze(_broker: Broker, member: Member) -> None:
    member.frozen = True


def thaw(_broker: Broker, member: Member) -> None:
    member.frozen = False


numbers = st.integers(0, 3)
happenings = st.one_of(
    st.integers(1, 3).map(lambda incarnation: lambda broker: broker.start(incarnation)),
    numbers.map(lambda number: of(number, Broker.step)),
    numbers.map(lambda number: of(number, Broker.step)),
    numbers.map(lambda number: of(number, Broker.step)),
    numbers.map(lambda number: of(number, Broker.lose)),
    numbers.map(lambda number: of(number, Broker.connect)),
    numbers.map(lambda number: of(number, Broker.die)),
    numbers.map(lambda number: of(number, freeze)),
    numbers.map(lambda number: of(number, thaw)),
)


@given(st.lists(happenings, max_size=40))
@settings(deadline=None)
def test_of_several_exactly_one_remains_and_all_know_which(story: list[Callable[[Broker], None]]) -> None:
    broker = Broker()
    broker.start(1)
    for happening in story:
        happening(broker)
    before = [member for member in broker.members if not member.gone]
    broker.settle()
    after = [member for member in broker.members if not member.gone]
    assert len(after) == min(1, len(before))
    if after:
        assert broker.retained == after[0].me


def test_one_that_was_frozen_while_another_came_and_went_leads_again() -> None:
    broker = Broker()
    broker.start(1)
    (first,) = broker.members
    broker.step(first)
    first.frozen = True
    broker.start(5)
    broker.step(broker.members[1])
    broker.step(broker.members[1])
    broker.die(broker.members[1])
    broker.settle()
    assert not first.gone
    assert first.me.incarnation > 5
    assert broker.retained == first.me


def test_who_leads_in_our_place_is_whoever_was_heard_of_last() -> None:
    rival = who(6, "http://b")
    assert standing.follow(rival, who(5, "http://c")) == rival
    assert standing.follow(rival, who(7, "http://c")) == who(7, "http://c")
    assert standing.follow(rival, who(6, "http://b", "lost")) is None
    assert standing.follow(rival, who(5, "http://b", "lost")) == rival, "the will of an earlier life"


# --- attention ---------------------------------------------------------------------------------------


def test_who_listens_and_hears_may_judge() -> None:
    attention, now_s = Attention(looked_s=0.0, heard_s=0.0), 0.0
    for step in range(100):
        now_s += 0.05
        attention, ask = standing.looked(attention, now_s, came=step % 5 == 0)
        assert not ask
        assert attention.doubt_s is None


def test_who_was_stopped_for_a_while_asks_before_it_judges() -> None:
    attention = Attention(looked_s=10.0, heard_s=10.0)
    attention, ask = standing.looked(attention, 20.0, came=True)
    assert ask
    assert attention.doubt_s == 20.0
    attention, ask = standing.looked(attention, 20.01, came=True)
    assert not ask
    assert attention.doubt_s is not None, "that something came is no answer: it may have been there before"
    attention, late = standing.answered(attention, 20.02)
    assert not late
    assert attention.doubt_s is None


def test_another_pause_before_the_answer_makes_it_worthless() -> None:
    attention, _ = standing.looked(Attention(looked_s=10.0, heard_s=10.0), 20.0, came=False)
    attention, ask = standing.looked(attention, 20.0 + 2 * PAUSE_S, came=True)
    assert ask


def test_time_in_which_this_process_was_busy_is_no_pause_and_makes_no_answer_late() -> None:
    attention, _ = standing.looked(Attention(looked_s=10.0, heard_s=10.0), 12.0, came=False)
    busy = standing.excused(attention, 0.8, 12.9)
    assert standing.answered(attention, 12.9)[1]
    assert not standing.answered(busy, 12.9)[1]
    _, ask = standing.looked(busy, 12.9, came=True)
    assert not ask
    assert standing.excused(attention, 5.0, 13.0).doubt_s == 13.0
    calm = standing.excused(Attention(looked_s=10.0, heard_s=10.0), 0.8, 10.9)
    assert standing.looked(calm, 10.9, came=False) == (Attention(looked_s=10.9, heard_s=10.8), False)
    stopped = standing.excused(Attention(looked_s=10.0, heard_s=10.0), 0.8, 20.0)
    assert standing.looked(stopped, 20.0, came=False)[1], "it was not busy all the time"


def test_silence_of_all_is_asked_about_and_an_answer_that_is_late_says_that_boards_were_missed() -> None:
    attention, now_s, asked = Attention(looked_s=0.0, heard_s=0.0), 0.0, []
    while now_s < SILENCE_S + 1.5 * PATIENCE_S:
        now_s += 0.05
        attention, ask = standing.looked(attention, now_s, came=False)
        if ask:
            asked.append(now_s)
    assert asked == pytest.approx([SILENCE_S + 0.05, SILENCE_S + PATIENCE_S + 0.1], abs=0.06)
    attention, late = standing.answered(attention, now_s)
    assert late
    attention, ask = standing.looked(attention, now_s + 0.05, came=False)
    assert not ask


# --- one that waits ----------------------------------------------------------------------------------


def test_who_finds_nobody_begins_once_all_that_is_kept_has_come() -> None:
    standby = Standby(url="http://me")
    assert not standing.is_free(standby, 10.0)
    assert standing.is_free(standing.arrived(standby, 10.0), 10.0)


@pytest.mark.parametrize("kept", [who(9), who(5, "http://other", "lost"), who(5, "http://other", "left")])
def test_an_earlier_life_of_ours_and_one_that_has_gone_are_nobody(kept: Coordinator) -> None:
    standby = standing.told(Standby(url="http://me"), kept, 10.0)
    assert standing.is_free(standing.arrived(standby, 10.0), 10.0)


def test_one_that_waits_calls_and_goes_on_waiting_as_long_as_it_is_answered() -> None:
    leader = who(5, "http://other")
    standby = standing.arrived(standing.told(Standby(url="http://me"), leader, 10.0), 10.0)
    now_s, calls = 10.0, []
    while now_s < 40.0:
        assert not standing.is_free(standby, now_s)
        standby, call = standing.called(standby, now_s)
        if call:
            calls.append(now_s)
            standby = standing.told(standby, leader, now_s + 0.1)
        now_s += 0.2
    assert len(calls) == pytest.approx(30.0 / CALL_S, rel=0.15)
    assert standing.is_free(standing.told(standby, replace(leader, state="lost"), now_s), now_s)
    assert not standing.is_free(standing.told(standby, who(4, "http://third", "left"), now_s), now_s)


def test_who_does_not_answer_has_gone() -> None:
    standby = standing.arrived(standing.told(Standby(url="http://me"), who(5, "http://other"), 10.0), 10.0)
    assert not standing.is_free(standby, 10.0 + GONE_S)
    assert standing.is_free(standby, 10.1 + GONE_S)
