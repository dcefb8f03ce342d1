"""What the coordinator believes about boards, told by nothing but messages and the time."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.coordinator.fleet import (
    ALARM_MEMORY_S,
    ALARMS_TO_BAR,
    BAR_S,
    DOUBT_LEASE_S,
    GRACE_S,
    LEASE_S,
    Fleet,
    FromBoard,
    alive,
    apply,
    barred,
    living,
    profiles,
    reconnected,
)
from shoal.messages import HEARTBEAT_S, Telemetry
from shoal.records import BoardId
from tests import build
from tests.build import A, B, C, birth, heartbeat, presence

MANIFEST = build.chain()
PROFILE = build.profile(MANIFEST)
NOW_S = 100.0


def told(
    *messages: tuple[BoardId, FromBoard],
    fleet: Fleet | None = None,
    at_s: float = NOW_S,
    retained: bool = False,
) -> Fleet:
    fleet = fleet or Fleet()
    for board, message in messages:
        fleet = apply(fleet, board, message, at_s, retained=retained)
    return fleet


def there(fleet: Fleet, at_s: float) -> list[BoardId]:
    return list(living(fleet, at_s))


def test_a_board_is_there_from_its_birth_until_its_lease_ends() -> None:
    fleet = told((A, birth(A)))
    assert there(fleet, NOW_S) == [A]
    assert there(fleet, NOW_S + LEASE_S - 0.01) == [A]
    assert there(fleet, NOW_S + LEASE_S) == []


def test_a_board_is_not_there_before_its_address_is_known() -> None:
    fleet = told((A, heartbeat()), (A, presence("online")), (A, PROFILE))
    assert there(fleet, NOW_S) == []
    assert there(told((A, birth(A)), fleet=fleet), NOW_S) == [A]


def test_heartbeats_renew_the_lease() -> None:
    fleet = told((A, birth(A)))
    for count in range(1, 40):
        fleet = told((A, heartbeat()), fleet=fleet, at_s=NOW_S + count * 1.9)
    assert there(fleet, NOW_S + 39 * 1.9 + 1.9) == [A]


def test_anything_that_a_board_says_renews_the_lease() -> None:
    said: Sequence[FromBoard] = (
        birth(A),
        heartbeat(),
        PROFILE,
        presence("online"),
        build.reported(),
        build.alarm(C),
        Telemetry(
            incarnation=1,
            epoch=1,
            answered=1,
            failed=0,
            retried=0,
            latency_median_s=1.0,
            latency_p95_s=1.0,
            lanes=(1,),
        ),
    )
    for message in said:
        fleet = told((A, message), fleet=told((A, birth(A))), at_s=NOW_S + 1.5)
        assert there(fleet, NOW_S + 3.4) == [A], message


def test_a_will_is_a_hint_that_one_heartbeat_takes_back() -> None:
    fleet = told((A, presence("lost")), fleet=told((A, birth(A))))
    assert there(fleet, NOW_S + DOUBT_LEASE_S - 0.01) == [A]
    assert there(fleet, NOW_S + DOUBT_LEASE_S) == []
    assert HEARTBEAT_S < DOUBT_LEASE_S < 2 * HEARTBEAT_S
    again = told((A, heartbeat()), fleet=fleet, at_s=NOW_S + HEARTBEAT_S)
    assert there(again, NOW_S + LEASE_S) == [A]


def test_wills_that_are_repeated_do_not_prolong_a_life() -> None:
    fleet = told((A, birth(A)))
    for tenth in range(10):
        fleet = told((A, presence("lost")), fleet=fleet, at_s=NOW_S + tenth / 10)
    assert there(fleet, NOW_S + DOUBT_LEASE_S) == []


def test_a_board_that_left_is_gone_at_once_even_while_it_still_beats() -> None:
    fleet = told((A, presence("left")), (A, heartbeat()), fleet=told((A, birth(A))))
    assert there(fleet, NOW_S) == []
    assert there(told((A, presence("online")), fleet=fleet), NOW_S) == [A]


def test_what_an_older_life_says_is_void() -> None:
    young = told((A, birth(A, 2)), (A, build.reported(build.ready(7), life=2)))
    old: Sequence[FromBoard] = (
        birth(A, 1),
        heartbeat(1),
        presence("lost", 1),
        presence("left", 1),
        build.reported(life=1),
        build.profile(MANIFEST, 9.0, life=1),
        build.alarm(B, 1),
    )
    for message in old:
        assert told((A, message), fleet=young, at_s=NOW_S + 1) == young


def test_a_new_life_begins_with_nothing() -> None:
    fleet = told((A, birth(A)), (A, PROFILE), (A, build.reported(build.ready(7))))
    fleet = told((A, heartbeat(2)), fleet=fleet)
    assert there(fleet, NOW_S) == []
    fleet = told((A, birth(A, 2)), fleet=fleet)
    assert there(fleet, NOW_S) == [A]
    assert fleet.boards[A].reported is None
    assert profiles(fleet, build.BUNDLE, NOW_S) == {}


def test_a_retained_message_proves_nothing_about_now() -> None:
    fleet = told((A, birth(A)), (A, presence("online")), (A, PROFILE), retained=True)
    assert there(fleet, NOW_S + DOUBT_LEASE_S - 0.01) == [A]
    assert there(fleet, NOW_S + DOUBT_LEASE_S) == []
    beating = told((A, heartbeat()), fleet=fleet, at_s=NOW_S + 0.2)
    assert there(beating, NOW_S + 1.0) == [A]
    assert profiles(beating, build.BUNDLE, NOW_S + 1.0) == {A: PROFILE}


def test_retained_messages_do_not_renew_a_lease() -> None:
    fleet = told((A, birth(A)))
    fleet = told((A, presence("online")), (A, PROFILE), fleet=fleet, at_s=NOW_S + 1.9, retained=True)
    assert there(fleet, NOW_S + LEASE_S) == []


def test_boards_get_more_time_after_the_broker_was_away() -> None:
    fleet = told((A, birth(A)), (B, birth(B)))
    fleet = told((B, presence("lost")), fleet=fleet)
    later_s = NOW_S + 60
    fleet = reconnected(fleet, later_s)
    assert there(fleet, later_s + DOUBT_LEASE_S - 0.01) == [A, B]
    assert there(fleet, later_s + DOUBT_LEASE_S) == [A], "one in doubt has to say something first"
    assert there(fleet, later_s + GRACE_S + LEASE_S - 0.01) == [A]
    assert there(fleet, later_s + GRACE_S + LEASE_S) == []


def test_profiles_are_those_of_the_bundle_and_of_boards_that_are_there() -> None:
    other = build.profile(MANIFEST, bundle=build.sha(9))
    fleet = told((A, birth(A)), (A, PROFILE), (B, birth(B)), (B, other), (C, PROFILE))
    assert profiles(fleet, build.BUNDLE, NOW_S) == {A: PROFILE}
    assert profiles(fleet, build.sha(9), NOW_S) == {B: other}
    assert profiles(fleet, build.BUNDLE, NOW_S + LEASE_S) == {}


# --- alarms ---------------------------------------------------------------------------------------

PAIR = frozenset((A, B))


def alarmed(*at_s: float, beat: bool = True) -> Fleet:
    """Return a fleet in which a said at these times that its exchange with b failed."""
    fleet = told((A, birth(A)), (B, birth(B)))
    for when_s in at_s:
        if beat:
            fleet = told((B, heartbeat()), fleet=fleet, at_s=when_s - 0.1)
        fleet = told((A, build.alarm(B)), fleet=fleet, at_s=when_s)
        if beat:
            fleet = told((B, heartbeat()), fleet=fleet, at_s=when_s + 0.1)
    return fleet


def test_one_alarm_bars_no_link() -> None:
    assert barred(alarmed(NOW_S), NOW_S) == frozenset()


def test_alarms_that_repeat_bar_the_link_for_a_while() -> None:
    assert ALARMS_TO_BAR == 2
    fleet = alarmed(NOW_S, NOW_S + 3)
    assert barred(fleet, NOW_S + 3) == {PAIR}
    assert barred(fleet, NOW_S + 3 + BAR_S - 0.1) == {PAIR}
    assert barred(fleet, NOW_S + 3 + BAR_S) == frozenset()


def test_alarms_that_lie_far_apart_do_not() -> None:
    fleet = alarmed(NOW_S, NOW_S + ALARM_MEMORY_S, NOW_S + 2.5 * ALARM_MEMORY_S)
    assert barred(fleet, NOW_S + 2.5 * ALARM_MEMORY_S) == frozenset()


def test_an_alarm_puts_the_accused_in_doubt_and_a_heartbeat_clears_it() -> None:
    assert there(alarmed(NOW_S, beat=False), NOW_S + DOUBT_LEASE_S) == [A]
    assert there(alarmed(NOW_S), NOW_S + DOUBT_LEASE_S) == [A, B]


def test_alarms_about_a_board_in_doubt_do_not_prolong_its_life() -> None:
    fleet = told((A, birth(A)), (B, birth(B)))
    for when_s in (NOW_S, NOW_S + 0.3):
        fleet = told((A, build.alarm(B)), fleet=fleet, at_s=when_s)
    assert there(fleet, NOW_S + DOUBT_LEASE_S) == [A]


def test_an_alarm_about_a_stranger_is_harmless() -> None:
    fleet = told((A, birth(A)), (A, build.alarm(C)), (A, build.alarm(A)))
    assert there(fleet, NOW_S) == [A]
    assert C not in fleet.boards


def test_a_new_life_of_either_end_forgives_the_link() -> None:
    for board in PAIR:
        fleet = told((board, birth(board, 2)), fleet=alarmed(NOW_S, NOW_S + 1), at_s=NOW_S + 2)
        assert barred(fleet, NOW_S + 2) == frozenset()


def test_a_link_is_not_barred_by_alarms_about_a_board_that_is_dead() -> None:
    """b loses power: what fails is the board, and its link is as good as ever once it is back."""
    fleet = alarmed(NOW_S, NOW_S + 3, beat=False)
    fleet = told((B, heartbeat()), fleet=fleet, at_s=NOW_S + 6)
    assert there(fleet, NOW_S + 6) == [B]
    assert barred(fleet, NOW_S + 6) == frozenset()


# --- whatever comes -------------------------------------------------------------------------------

said = st.one_of(
    st.builds(lambda life: birth(A, life), st.integers(1, 3)),
    st.builds(heartbeat, st.integers(1, 3)),
    st.builds(presence, st.sampled_from(["online", "left", "lost"]), st.integers(1, 3)),
    st.builds(lambda life: build.profile(MANIFEST, life=life), st.integers(1, 3)),
    st.builds(
        lambda epoch, life: build.reported(build.ready(epoch), life=life),
        st.integers(1, 9),
        st.integers(1, 3),
    ),
    st.builds(build.alarm, st.sampled_from([A, B, C]), st.integers(1, 3)),
)


@given(events=st.lists(st.tuples(st.sampled_from([A, B]), said, st.floats(0, 3), st.booleans()), max_size=30))
@settings(max_examples=100, deadline=None)
def test_whatever_is_said_belief_stays_sound(events: list[tuple[BoardId, FromBoard, float, bool]]) -> None:
    fleet, now_s = Fleet(), NOW_S
    lives: dict[BoardId, int] = {}
    for board, message, wait_s, retained in events:
        now_s += wait_s
        fleet = apply(fleet, board, message, now_s, retained=retained)
        lives[board] = max(lives.get(board, 0), message.incarnation)
        assert {name: known.incarnation for name, known in fleet.boards.items()} == lives
        for name, known in living(fleet, now_s).items():
            assert known.birth is not None
            for part in (known.birth, known.profile, known.reported):
                assert part is None or part.incarnation == lives[name]
    silent_s = now_s + LEASE_S
    assert not any(alive(board, silent_s) for board in fleet.boards.values())


def test_the_order_of_boards_is_that_of_their_names() -> None:
    fleet = told((C, birth(C)), (A, birth(A)), (B, birth(B)))
    assert there(fleet, NOW_S) == [A, B, C]
    with pytest.raises(KeyError):
        living(fleet, NOW_S)[BoardId("d")]
