"""Requests on their way through lanes, with an executor that answers or fails as told."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from shoal.agent import waiting
from shoal.agent.dispatch import Dispatcher, ExpiredError, MovedError, Question
from shoal.agent.executor import Executor
from shoal.agent.waiting import LateError, OverloadedError
from shoal.errors import BoardError, ModelError
from shoal.manifest import FORMAT, VERSION, WHOLE, Manifest, Segment
from shoal.program import Lane, Plan, Prediction, Program, Run
from shoal.records import Address, Array, Blob, BoardId, Sha256, TensorSpec

LEAD, OTHER = BoardId("lead"), BoardId("other")
ONE, TWO = Sha256("1" * 64), Sha256("2" * 64)
X = np.arange(6, dtype=np.float32).reshape(3, 2)


class Fake:
    """An executor whose answers are `x + lane`; `act` may raise or wait before."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(8)
        self.asked: list[tuple[int, int, int]] = []
        self.act: Callable[[int, int], None] = lambda _epoch, _lane: None

    def lead(
        self, epoch: int, lane: int, _attempt: bytes, inputs: Mapping[str, Array], _deadline_s: float,
        wanted: Sequence[str], _trace: object = None,
    ) -> dict[str, Array]:  # fmt: skip
        self.asked.append((epoch, lane, inputs["x"].shape[0]))
        self.act(epoch, lane)
        return {name: inputs["x"].astype(np.float32) + 1 for name in wanted}


def manifest(batch: str | None = "n") -> Manifest:
    def spec(name: str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("n", 2))

    whole = Segment(
        name=WHOLE,
        model=Blob(sha256=Sha256("a" * 64), size_bytes=1),
        weights=(),
        inputs=(spec("x"),),
        outputs=(spec("y"),),
        kind="k",
        flops=1,
        work_bytes=0,
    )
    part = Segment(
        name="s00",
        model=Blob(sha256=Sha256("b" * 64), size_bytes=1),
        weights=(),
        inputs=(spec("x"),),
        outputs=(spec("y"),),
        kind="k",
        flops=1,
        work_bytes=0,
    )
    return Manifest(
        format=FORMAT,
        version=VERSION,
        name="m",
        producer="test",
        source_sha256=ONE,
        opset=20,
        inputs=(spec("x"),),
        outputs=(spec("y"),),
        sample_sizes={"n": 1},
        batch=batch,
        whole=whole,
        segments=(part,),
        cuts=(),
        shardings=(),
        verification=(),
    )


def plan(epoch: int = 1, lead: BoardId = LEAD, bundle: Sha256 = ONE, lanes: int = 1) -> Plan:
    whole = Program(steps=(Run(segment=WHOLE),))
    return Plan(
        epoch=epoch,
        bundle=bundle,
        model="m",
        strategy="local",
        lead=lead,
        lanes=tuple(Lane(programs={lead: whole}, weight=1 / lanes) for _ in range(lanes)),
        addresses={lead: Address(host="127.0.0.1", data_port=1, http_port=2)},
        predicted=Prediction(latency_s=0.01, throughput_per_s=100.0),
        reason="test",
    )


def question(
    rows: Array = X, bundle: Sha256 = ONE, within_s: float = 10.0, deadline_s: float | None = None
) -> Question:
    now_s = time.monotonic()
    wanted_s = None if deadline_s is None else now_s + deadline_s
    return Question(bundle=bundle, inputs={"x": rows}, patience_s=now_s + within_s, deadline_s=wanted_s)


async def no_resort(_manifest: Manifest, _inputs: Mapping[str, Array]) -> dict[str, Array]:
    raise BoardError("does not fit")


def run(work: Callable[[Dispatcher, Fake], Coroutine[object, object, None]]) -> None:
    async def play() -> None:
        fake = Fake()
        await work(Dispatcher(LEAD, cast(Executor, fake), no_resort), fake)
        fake.threads.shutdown()

    asyncio.run(play())


def test_a_request_waits_for_a_plan_and_is_answered() -> None:
    async def work(dispatcher: Dispatcher, _fake: Fake) -> None:
        asking = asyncio.ensure_future(dispatcher.infer(question()))
        await asyncio.sleep(0)
        assert dispatcher.in_flight == 1
        await dispatcher.serve(plan(), manifest())
        np.testing.assert_array_equal((await asking)["y"], X + 1)
        assert dispatcher.in_flight == 0
        report = dispatcher.telemetry(7)
        assert report is not None
        assert (report.answered, report.failed, report.retried) == (1, 0, 0)
        assert report.lanes == (1,)

    run(work)


def test_a_request_read_for_one_bundle_is_never_run_on_another() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        asking = asyncio.ensure_future(dispatcher.infer(question(bundle=ONE)))
        await asyncio.sleep(0)
        await dispatcher.serve(plan(bundle=TWO), manifest())
        with pytest.raises(MovedError):
            await asking
        assert fake.asked == []

    run(work)


def test_a_request_moves_on_when_another_board_becomes_the_lead() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        await dispatcher.serve(plan(), manifest())

        def fail(_epoch: int, _lane: int) -> None:
            raise BoardError("gone")

        fake.act = fail
        asking = asyncio.ensure_future(dispatcher.infer(question()))
        await asyncio.sleep(0.05)
        await dispatcher.serve(plan(2, lead=OTHER), manifest())
        with pytest.raises(MovedError, match="other"):
            await asking

    run(work)


def test_a_lane_that_fails_is_left_for_another() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        def fail_first(_epoch: int, lane: int) -> None:
            if lane == 0:
                raise BoardError("gone")

        fake.act = fail_first
        await dispatcher.serve(plan(lanes=2), manifest(batch=None))
        begun_s = time.monotonic()
        for _ in range(5):
            np.testing.assert_array_equal((await dispatcher.infer(question()))["y"], X + 1)
        assert time.monotonic() - begun_s < 0.9, "no request waits for a bar to end while a lane is free"
        assert [lane for _, lane, _ in fake.asked].count(0) == 1

    run(work)


def test_a_new_plan_ends_the_wait_for_a_failed_lane() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        def fail_old(epoch: int, _lane: int) -> None:
            if epoch == 1:
                raise BoardError("gone")

        fake.act = fail_old
        await dispatcher.serve(plan(1), manifest())
        asking = asyncio.ensure_future(dispatcher.infer(question()))
        await asyncio.sleep(0.05)
        begun_s = time.monotonic()
        await dispatcher.serve(plan(2), manifest())
        np.testing.assert_array_equal((await asking)["y"], X + 1)
        assert time.monotonic() - begun_s < 0.5

    run(work)


def test_inputs_that_do_not_fit_are_not_tried_again() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        def refuse(_epoch: int, _lane: int) -> None:
            raise ModelError("wrong shape")

        fake.act = refuse
        await dispatcher.serve(plan(), manifest())
        with pytest.raises(ModelError, match="wrong shape"):
            await dispatcher.infer(question())
        assert len(fake.asked) == 1

    run(work)


def test_a_batch_is_divided_by_weight_and_put_together_in_order() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        await dispatcher.serve(plan(lanes=3), manifest())
        rows = np.arange(14, dtype=np.float32).reshape(7, 2)
        np.testing.assert_array_equal((await dispatcher.infer(question(rows)))["y"], rows + 1)
        assert sorted(count for _, _, count in fake.asked) == [2, 2, 3]
        assert {lane for _, lane, _ in fake.asked} == {0, 1, 2}

    run(work)


def test_each_part_of_a_batch_goes_to_the_lane_for_which_its_rows_were_counted() -> None:
    """By what is under way alone the fast one would be free again, as it were, for the last part too."""

    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        weights = (0.5, 0.25, 0.125, 0.125)
        unequal = tuple(replace(plan().lanes[0], weight=weight) for weight in weights)
        await dispatcher.serve(replace(plan(), lanes=unequal), manifest())
        fake.act = lambda _epoch, _lane: time.sleep(0.02)
        await dispatcher.infer(question(np.zeros((8, 2), np.float32)))
        assert sorted(fake.asked) == [(1, 0, 4), (1, 1, 2), (1, 2, 1), (1, 3, 1)]
        fake.asked.clear()

        def act(_epoch: int, lane: int) -> None:
            if lane == 1:
                raise BoardError("gone")

        fake.act = act
        await dispatcher.infer(question(np.zeros((8, 2), np.float32)))
        assert [rows for _, lane, rows in fake.asked if lane == 1] == [2]
        assert sum(rows for _, lane, rows in fake.asked if lane != 1) == 8, "another lane takes what failed"

    run(work)


def test_the_rest_of_a_batch_that_has_failed_is_in_nobodys_way() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        await dispatcher.serve(plan(), manifest())
        busy = [asyncio.ensure_future(dispatcher.infer(question())) for _ in range(2)]
        await asyncio.sleep(0.01)
        dead = waiting.turn(99, now_s=0.0, deadline_s=None, patience_s=time.monotonic() + 9, work=1.0)
        dispatcher._line.join(dead)  # as one whose wait was cancelled but has not ended yet
        busy.append(asyncio.ensure_future(dispatcher.infer(question())))
        for each in await asyncio.gather(*busy):
            assert each["y"] is not None
        assert len(fake.asked) == 3

    run(work)


def test_time_that_is_up_is_said_in_time_and_bars_nothing() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        with pytest.raises(ExpiredError, match="no plan is in force"):
            await dispatcher.infer(question(within_s=0.05))
        await dispatcher.serve(plan(), manifest())

        def late(_epoch: int, _lane: int) -> None:
            time.sleep(0.1)
            raise BoardError("nothing came in time")

        fake.act = late
        with pytest.raises(ExpiredError, match="nothing came in time"):
            await dispatcher.infer(question(within_s=0.05))
        fake.act = lambda _epoch, _lane: None
        begun_s = time.monotonic()
        await dispatcher.infer(question())
        assert time.monotonic() - begun_s < 0.5, "the lane must not be barred for others"

    run(work)


def test_at_last_the_whole_model_runs_on_this_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.agent.dispatch.RESORT_S", 0.05)
    monkeypatch.setattr("shoal.agent.dispatch.BARRED_S", 0.02)

    async def resort(_manifest: Manifest, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": inputs["x"]}

    async def play() -> None:
        fake = Fake()

        def fail(_epoch: int, _lane: int) -> None:
            raise BoardError("gone")

        fake.act = fail
        dispatcher = Dispatcher(LEAD, cast(Executor, fake), resort)
        await dispatcher.serve(plan(), manifest())
        np.testing.assert_array_equal((await dispatcher.infer(question()))["y"], X)
        fake.threads.shutdown()

    asyncio.run(play())


def test_too_many_that_wait_are_refused_at_once_and_a_stop_refuses_the_rest() -> None:
    async def work(dispatcher: Dispatcher, _fake: Fake) -> None:
        asking = [asyncio.ensure_future(dispatcher.infer(question())) for _ in range(256)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="256 requests wait"):
            await dispatcher.infer(question())
        await dispatcher.stop()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, ExpiredError) for one in found)
        assert dispatcher.in_flight == 0

    run(work)


# --- requests of several sizes --------------------------------------------------------------------


def test_lanes_are_for_requests_of_their_sizes() -> None:
    small, large, other = (
        replace(plan().lanes[0], least=least, weight=weight)
        for least, weight in (({}, 1.0), ({"n": 3}, 0.5), ({"n": 3}, 0.5))
    )
    by_size = replace(plan(), lanes=(small, large, other))

    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        await dispatcher.serve(by_size, manifest(batch=None))
        await dispatcher.infer(question(X[:2]))
        assert fake.asked == [(1, 0, 2)]
        await asyncio.gather(dispatcher.infer(question()), dispatcher.infer(question()))
        assert sorted(fake.asked[1:]) == [(1, 1, 3), (1, 2, 3)]

    run(work)


def test_a_batch_is_divided_among_the_lanes_of_its_size() -> None:
    small, large, other = (replace(plan().lanes[0], least=least) for least in ({}, {"n": 3}, {"n": 3}))
    by_size = replace(plan(), lanes=(small, large, other))

    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        await dispatcher.serve(by_size, manifest())
        answer = await dispatcher.infer(question())
        assert np.array_equal(answer["y"], X + 1)
        # Each part alone has too few rows for those lanes.
        assert sorted(fake.asked) == [(1, 1, 2), (1, 2, 1)]

    run(work)


def test_a_request_that_no_lane_is_for_runs_in_one_piece_at_once() -> None:
    large = replace(plan(), lanes=(replace(plan().lanes[0], least={"n": 4}),))

    async def play() -> None:
        async def resort(_manifest: Manifest, inputs: Mapping[str, Array]) -> dict[str, Array]:
            return {"y": inputs["x"] + 9}

        fake = Fake()
        dispatcher = Dispatcher(LEAD, cast(Executor, fake), resort)
        await dispatcher.serve(large, manifest(batch=None))
        begun_s = time.monotonic()
        assert np.array_equal((await dispatcher.infer(question()))["y"], X + 9)
        assert time.monotonic() - begun_s < 1
        assert fake.asked == []
        dispatcher = Dispatcher(LEAD, cast(Executor, fake), no_resort)
        await dispatcher.serve(large, manifest(batch=None))
        with pytest.raises(ExpiredError, match="does not fit"):
            await dispatcher.infer(question(within_s=0.3))
        fake.threads.shutdown()

    asyncio.run(play())


def test_only_requests_of_the_usual_size_with_the_cluster_to_themselves_prove_a_plan() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        await dispatcher.serve(plan(lanes=2), manifest())
        fake.act = lambda _epoch, _lane: time.sleep(0.02)
        usual, large = X[:1], X
        await dispatcher.infer(question(usual))
        await dispatcher.infer(question(large))
        await asyncio.gather(dispatcher.infer(question(usual)), dispatcher.infer(question(usual)))
        report = dispatcher.telemetry(7)
        assert report is not None
        assert (report.answered, report.alone) == (4, 1)
        assert sum(report.lanes) >= 4, "a batch that was divided counts for each lane"
        assert 0.02 <= report.alone_median_s < 0.2
        asking = asyncio.ensure_future(dispatcher.infer(question(usual)))
        await asyncio.sleep(0.005)
        await dispatcher.serve(plan(epoch=2, lanes=2), manifest())
        await asking
        report = dispatcher.telemetry(7)
        assert report is not None
        assert (report.answered, report.alone) == (1, 0), "which plan it shows is not known"
        assert report.lanes == (0, 0), "of the lanes of the plan in force"

    run(work)


# --- who is next, and who is refused ----------------------------------------------------------------


def full(
    dispatcher: Dispatcher, fake: Fake
) -> tuple[threading.Event, list[asyncio.Future[dict[str, Array]]]]:
    """Take all the room of the one lane, until the event is set."""
    go = threading.Event()

    def wait(_epoch: int, _lane: int) -> None:
        go.wait(10)

    fake.act = wait
    return go, [asyncio.ensure_future(dispatcher.infer(question())) for _ in range(2)]


def test_the_earliest_deadline_goes_first_and_the_rest_in_their_order() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        await dispatcher.serve(plan(), manifest(batch=None))
        go, busy = full(dispatcher, fake)
        await asyncio.sleep(0.01)
        done: list[str] = []

        async def ask(name: str, deadline_s: float | None) -> None:
            await dispatcher.infer(question(deadline_s=deadline_s))
            done.append(name)

        asked = []
        for name, deadline_s in (("first", None), ("second", None), ("patient", 9.0), ("hurried", 1.5)):
            asked.append(asyncio.ensure_future(ask(name, deadline_s)))
            await asyncio.sleep(0.002)
        fake.act = lambda _epoch, _lane: time.sleep(0.01)
        go.set()
        await asyncio.gather(*busy, *asked)
        # Two are under way at a time, so neighbours may end in either order.
        assert set(done[:2]) == {"hurried", "first"}
        assert set(done[2:]) == {"second", "patient"}

    run(work)


def test_a_deadline_that_passes_in_the_line_is_said_at_once_and_nothing_is_computed() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        await dispatcher.serve(plan(), manifest(batch=None))
        go, busy = full(dispatcher, fake)
        await asyncio.sleep(0.01)
        begun_s = time.monotonic()
        with pytest.raises(LateError, match="the deadline cannot be met"):
            await dispatcher.infer(question(deadline_s=0.05))
        assert 0.04 < time.monotonic() - begun_s < 1.0
        assert len(fake.asked) == 2
        go.set()
        await asyncio.gather(*busy)
        report = dispatcher.telemetry(7)
        assert report is not None
        assert (report.asked, report.answered, report.refused, report.failed) == (3, 2, 1, 0)
        assert report.waiting > 0

    run(work)


def test_a_plan_that_turns_out_slow_has_hurried_requests_refused_when_they_come() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        await dispatcher.serve(plan(), manifest(batch=None))
        fake.act = lambda _epoch, _lane: time.sleep(0.05)
        await dispatcher.infer(question(deadline_s=5.0))
        with pytest.raises(LateError, match="of late no request was answered in less than"):
            await dispatcher.infer(question(deadline_s=0.02))
        assert len(fake.asked) == 1

    run(work)


def test_overload_is_refused_at_once_and_says_when_to_come_again() -> None:
    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        slow = replace(plan(), predicted=Prediction(latency_s=2.0, throughput_per_s=0.5))
        await dispatcher.serve(slow, manifest(batch=None))
        go, busy = full(dispatcher, fake)
        await asyncio.sleep(0.01)
        waits = [asyncio.ensure_future(dispatcher.infer(question(within_s=60.0))) for _ in range(5)]
        await asyncio.sleep(0.01)
        begun_s = time.monotonic()
        with pytest.raises(OverloadedError, match="5 requests wait") as found:
            await dispatcher.infer(question(within_s=4.0))
        assert time.monotonic() - begun_s < 0.5
        # Five requests before it, each three times the sample: 30 s, and 4 s it waits.
        assert 26 <= found.value.retry_after_s <= 27
        go.set()
        await asyncio.gather(*busy, *waits)

    run(work)


def test_a_request_that_waits_until_its_client_gives_up_does_not_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    asked = Dispatcher._latest_s

    def counted(self: Dispatcher, *args: object) -> float:
        nonlocal looks
        looks += 1
        return asked(self, *args)  # type: ignore[arg-type]

    async def work(dispatcher: Dispatcher, fake: Fake) -> None:
        await dispatcher.serve(plan(), manifest(batch=None))
        fake.act = lambda _epoch, _lane: time.sleep(0.2)
        await dispatcher.infer(question())  # now it is known what a request takes
        go, busy = full(dispatcher, fake)
        await asyncio.sleep(0.01)
        monkeypatch.setattr(Dispatcher, "_latest_s", counted)
        with pytest.raises(ExpiredError):
            await dispatcher.infer(question(within_s=0.25))
        assert looks < 10
        go.set()
        await asyncio.gather(*busy)

    run(work)
