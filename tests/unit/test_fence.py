"""A board never goes back to a coordinator once it has heard of a newer one."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.agent import fence
from shoal.agent.fence import Fence
from shoal.messages import Coordinator, Desired


def desired(coordinator: int, version: int) -> Desired:
    return Desired(
        coordinator=coordinator,
        version=version,
        bundle=None,
        peers={},
        plans=(),
        committed=0,
        proving=0,
        ahead=(),
        precisions=(),
    )


def says(incarnation: int, state: str = "online") -> Coordinator:
    word = "online" if state == "online" else "lost"
    return Coordinator(incarnation=incarnation, state=word, url="http://x")  # type: ignore[arg-type]


def test_an_older_coordinator_is_not_obeyed_as_soon_as_a_newer_one_has_said_who_it_is() -> None:
    known = fence.heard(Fence(), desired(1, 7))
    assert known == Fence(coordinator=1, version=7)
    known = fence.heard(known, says(2))
    assert fence.heard(known, desired(1, 8)) is known
    assert fence.heard(known, desired(2, 1)) == Fence(coordinator=2, version=1)


def test_that_the_newest_is_lost_lets_no_older_one_back_in() -> None:
    known = fence.heard(Fence(), says(2, "lost"))
    assert fence.heard(known, desired(1, 8)) is known


def test_words_that_come_twice_or_late_change_nothing() -> None:
    known = fence.heard(Fence(), desired(2, 5))
    for late in (desired(2, 5), desired(2, 4), says(2), says(1)):
        assert fence.heard(known, late) is known


words = st.one_of(
    st.builds(says, st.integers(1, 4), st.sampled_from(["online", "lost"])),
    st.builds(desired, st.integers(1, 4), st.integers(1, 4)),
)


@given(st.lists(words, max_size=30))
def test_what_is_obeyed_only_grows(said: list[Coordinator | Desired]) -> None:
    known, heard = Fence(), 0
    for message in said:
        after = fence.heard(known, message)
        obeyed = isinstance(message, Desired) and after is not known
        heard = max(heard, message.coordinator if isinstance(message, Desired) else message.incarnation)
        assert (after.coordinator, after.version) >= (known.coordinator, known.version)
        assert after.coordinator == heard
        if obeyed:
            assert (message.coordinator, message.version) == (after.coordinator, after.version)  # type: ignore[union-attr]
        known = after
