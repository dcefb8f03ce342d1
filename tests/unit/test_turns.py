"""Turns go to whoever has the earliest deadline, one at a time; and when a process is not listening."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.coordinator import turns as module
from shoal.coordinator.standing import PAUSE_S
from shoal.coordinator.turns import Absence, Turns


async def have(turns: Turns, due_s: float, had: list[float]) -> None:
    async with turns.turn(due_s):
        had.append(due_s)
        await asyncio.sleep(0)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12, unique=True))
def test_the_earliest_deadline_goes_first(deadlines: list[float]) -> None:
    had: list[float] = []

    async def run() -> None:
        turns = Turns()
        async with turns.turn(0.0):
            waiting = [asyncio.ensure_future(have(turns, due_s, had)) for due_s in deadlines]
            await asyncio.sleep(0)
            assert not had, "one at a time"
        await asyncio.gather(*waiting)
        async with turns.turn(0.0):
            had.append(99.0)

    asyncio.run(run())
    assert had == [*sorted(deadlines), 99.0]


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), min_size=1, max_size=12), st.booleans())
def test_who_is_cancelled_takes_no_turn_with_it(wishes: list[tuple[float, bool]], late: bool) -> None:
    """Also one whose turn has just come."""
    had: list[float] = []

    async def run() -> None:
        turns = Turns()
        async with turns.turn(0.0):
            waiting = [(asyncio.ensure_future(have(turns, due_s, had)), stays) for due_s, stays in wishes]
            await asyncio.sleep(0)
            if not late:
                for task, stays in waiting:
                    stays or task.cancel()
        if late:
            for task, stays in waiting:
                stays or task.cancel()
        await asyncio.gather(*(task for task, _ in waiting), return_exceptions=True)
        async with turns.turn(0.0):
            had.append(99.0)

    asyncio.run(run())
    assert had == [*sorted(due_s for due_s, stays in wishes if stays), 99.0]


def test_an_error_in_a_turn_ends_it() -> None:
    async def run() -> None:
        turns = Turns()
        try:
            async with turns.turn(0.0):
                raise ValueError
        except ValueError:
            async with turns.turn(0.0):
                pass

    asyncio.run(run())


def test_a_pause_is_when_no_cluster_had_its_turn_and_none_was_busy() -> None:
    absence = Absence()
    now_s = absence._looked_s
    for _ in range(10):  # clusters look by turns, each of them seldom
        now_s += 0.9 * PAUSE_S
        absence.look(now_s)
    assert absence.pauses == 0
    absence.total_s += 3.0  # one of them has planned
    absence.look(now_s + 3.0 + 0.9 * PAUSE_S)
    assert absence.pauses == 0
    now_s += 3.0 + 0.9 * PAUSE_S
    absence.look(now_s + 1.1 * PAUSE_S)
    assert absence.pauses == 1
    absence.look(now_s + 1.2 * PAUSE_S)
    assert absence.pauses == 1


def test_long_turns_leave_time_for_others_but_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a coordinator that plans all the time would not take the bundle that ends it."""
    clock = SimpleNamespace(now_s=0.0)
    rests: list[float] = []

    async def sleep(seconds: float) -> None:
        rests.append(seconds)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=sleep))

    async def run() -> None:
        turns = Turns()
        for took_s in (0.001, 0.15, 0.15, 0.15, 0.5, 30.0):
            async with turns.turn(0.0):
                clock.now_s += took_s

    asyncio.run(run())
    assert rests == [0, pytest.approx(0.03), 0, pytest.approx(0.065), pytest.approx(0.1)]
    assert max(rests) < PAUSE_S
