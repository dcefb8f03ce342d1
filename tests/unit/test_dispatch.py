"""Requests on their way through lanes, with an executor that answers or fails as told."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from shoal.agent.dispatch import Dispatcher, ExpiredError, MovedError, OverloadedError, Question
from shoal.agent.executor import Executor
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


def question(rows: Array = X, bundle: Sha256 = ONE, within_s: float = 10.0) -> Question:
    return Question(bundle=bundle, inputs={"x": rows}, deadline_s=time.monotonic() + within_s)


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
