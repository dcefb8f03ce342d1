"""The simulator against schedules that one can work out by hand, and against itself."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.agent import dispatch, serve, service
from shoal.lab import load, requests
from shoal.lab import simulate as simulator
from shoal.lab.boards import Setting
from shoal.lab.calibration import Calibration
from shoal.lab.clients import SERVE_S
from shoal.lab.report import Outcome, quantile_s, reactions
from shoal.lab.scenario import Shape
from shoal.lab.scenario_file import parse
from shoal.lab.shaping import DESK, PAYLOAD_SHARE, Wiring
from shoal.lab.simulate import simulate
from shoal.lab.steps import Await, Hand, Work, moves_of
from shoal.lab.traffic import FRAME_BYTES, MESSAGE_S, Traffic
from shoal.lab.virtual import Timeline, Worker
from shoal.manifest import WHOLE, Manifest
from shoal.program import Exchange, Lane, Program, Run
from tests.build import BUNDLE, A, B, C, chain

SECOND = 1.0


def setting_for(
    text: str, manifest: Manifest, *, segment_s: float = 0.1, memory: int = 1 << 30, asked: int = 0
) -> tuple[object, Setting]:
    scenario = parse(text, "s.toml")
    seconds = {segment.name: segment_s for segment in manifest.segments}
    seconds[WHOLE] = segment_s * len(manifest.segments)
    return scenario, Setting(
        manifest=manifest,
        digest=BUNDLE,
        calibration=Calibration(seconds=seconds),
        speeds={board.name: board.speed or 1.0 for board in scenario.boards},
        quotas={board.name: board.quota or 1.0 for board in scenario.boards},
        memory_bytes={board.name: board.memory_bytes or memory for board in scenario.boards},
        sizes=manifest.sample_sizes,
        input_bytes=asked,
        output_bytes=0,
    )


def played(text: str, manifest: Manifest | None = None, **more: int | float) -> Outcome:
    scenario, about = setting_for(text, manifest or chain(), **more)  # type: ignore[arg-type]
    return simulate(scenario, about)  # type: ignore[arg-type]


ONE = '[[board]]\nname = "a"\n'
TWO = ONE + '[[board]]\nname = "b"\n'


def test_the_rules_of_dispatch_are_those_of_the_agent() -> None:
    for name in ("BARRED_S", "RESORT_S", "PATIENCE", "LEAST_ATTEMPT_S"):
        assert getattr(requests, name) == getattr(dispatch, name)
    assert simulator.TELEMETRY_S == service.TELEMETRY_S
    assert requests.ANSWER_S == load.ANSWER_S == serve.DEFAULT_TIMEOUT_S


def test_one_board_answers_one_request_after_the_other() -> None:
    found = played("duration = 10\n" + ONE)
    # Three segments of 100 ms, and the way there and back: two messages of 0.3 ms, HTTP of 1.2 ms.
    assert quantile_s(found.requests, 0.5) == pytest.approx(0.3 + 2 * MESSAGE_S + SERVE_S, abs=1e-6)
    assert len(found.requests) == math.ceil(10 / (0.3 + 2 * MESSAGE_S + SERVE_S))


def test_two_clients_of_one_board_wait_for_each_other() -> None:
    found = played("duration = 10\nworkload.clients = 2\n" + ONE)
    assert quantile_s(found.requests, 0.5) == pytest.approx(0.6, rel=0.01)
    assert found.usage[0].share == pytest.approx(1.0, rel=0.01)


def test_more_than_can_be_answered_in_time_is_refused_and_asked_again() -> None:
    """Ten a second for a board that answers three: what would wait for more than 30 s is not taken in.

    Its client asks again for 30 s.
    """
    found = played("duration = 60\nbaseline = 0\nworkload.rate = 10\n" + ONE)
    right = [request for request in found.requests if request.fate == "right"]
    assert max(request.took_s for request in right) < 2 * 30 + 3 * 0.3, "nothing is queued without end"
    assert len(right) > 0.95 * 60 / 0.3, "and the board works all the time"


@pytest.mark.parametrize(("asked", "before", "after"), [("clients = 1", 1, 4), ("rate = 1", 10, 40)])
def test_more_is_asked_from_a_moment_on_and_then_less(asked: str, before: int, after: int) -> None:
    load = "[[event]]\nat = 10\nload = 4\n[[event]]\nat = 20\nload = 1\n"
    found = played(f"duration = 30\nbaseline = 0\nworkload.{asked}\n" + ONE + load, segment_s=0.03)
    assert [happening.what for happening in found.happenings] == [
        "4 times as much is asked",
        "1 times as much is asked",
    ]
    counts = [sum(a <= r.asked_s < a + 10 for r in found.requests) for a in (0, 10, 20)]
    if asked.startswith("rate"):
        assert counts[1] == pytest.approx(after, rel=0.5)
        assert max(counts[0], counts[2]) <= 2 * before < counts[1]
    else:  # one board has as many answers, and all wait for one another
        slow = [r.took_s for r in found.requests if 12 <= r.asked_s < 19]
        calm = [r.took_s for r in found.requests if r.asked_s < 9 or r.asked_s >= 22]
        assert min(slow) == pytest.approx(after * max(calm), rel=0.1)


def test_when_requests_wait_the_cluster_is_planned_for_throughput() -> None:
    text = "duration = 40\nworkload.clients = 1\n" + TWO + "[[event]]\nat = 10\nload = 10\n"
    found = played(text)
    assert [switch.strategy for switch in found.switches] == ["local", "replicate"]
    assert found.switches[1].reason.startswith("requests wait, ")
    assert 1 < found.switches[1].at_s - 10 < 4
    assert {request.fate for request in found.requests} == {"right"}


def test_a_slow_board_takes_longer_in_proportion() -> None:
    found = played("duration = 10\n" + ONE + "speed = 0.5\n")
    assert quantile_s(found.requests, 0.5) == pytest.approx(0.6 + 2 * MESSAGE_S + SERVE_S, abs=1e-6)


def test_a_pipeline_answers_at_the_rate_of_its_slowest_stage() -> None:
    # Neither board holds three segments of 100 bytes; two on one board, one on the other: 200 ms.
    text = 'duration = 20\nobjective = "throughput"\nworkload.clients = 3\n' + TWO
    found = played(text, chain((100, 100, 100)), memory=250)
    assert found.switches[0].strategy == "pipeline"
    answered = sum(request.fate == "right" for request in found.requests)
    assert answered == pytest.approx(20 / 0.2, abs=3)
    assert found.single is None


def test_a_delay_of_the_cables_is_paid_at_each_crossing() -> None:
    # Desk to lead, lead to the other, the answer back to the lead, and to the desk; the desk has none.
    text = 'duration = 20\nnetwork.delay = "10ms"\nmargin = 0.0\n' + TWO
    found = played(text, chain((100, 100, 100)), memory=250)
    expected_s = 0.3 + 2 * 0.01 + 2 * 0.02 + 4 * MESSAGE_S + SERVE_S
    assert quantile_s(found.requests, 0.5) == pytest.approx(expected_s, abs=1e-3)


def test_a_killed_board_is_replaced_and_no_request_is_lost() -> None:
    text = 'duration = 20\nobjective = "throughput"\nworkload.clients = 2\n' + TWO
    found = played(text + '[[event]]\nat = 5\nkill = "b"\n')
    assert all(request.fate == "right" for request in found.requests)
    (reaction,) = reactions(found)
    # The last will, then as long as a board in doubt has: 0.4 s; then the other board loads.
    assert reaction.plan_s is not None
    assert 0.4 < reaction.plan_s < 1.5
    assert found.switches[-1].boards == (A,)


def test_a_frozen_board_is_noticed_by_its_silence() -> None:
    text = 'duration = 30\nobjective = "throughput"\nworkload.clients = 2\n' + TWO
    found = played(text + '[[event]]\nat = 5\nfreeze = "b"\n')
    (reaction,) = reactions(found)
    assert reaction.plan_s is not None
    assert 1.7 < reaction.plan_s < 3.5  # a lease of 2 s
    assert all(request.fate == "right" for request in found.requests)


def test_a_board_that_gets_slow_loses_the_plan() -> None:
    text = 'duration = 20\nmargin = 0.1\n[[board]]\nname = "a"\n[[board]]\nname = "b"\nspeed = 0.7\n'
    found = played(text + '[[event]]\nat = 6\nboard = "a"\nspeed = 0.3\n')
    assert [switch.boards for switch in found.switches] == [(A,), (B,)]
    assert "of its profiled speed" in found.switches[1].reason


def test_the_same_seed_gives_the_same_outcome() -> None:
    text = "seed = 3\nduration = 30\nworkload.rate = 5\n" + TWO + '[[event]]\nat = 9\nkill = "a"\n'
    first, again = played(text), played(text)
    assert first == again
    other = played(text.replace("seed = 3", "seed = 4"))
    assert other.requests != first.requests


def test_a_quarter_of_an_hour_is_played_to_its_end() -> None:
    text = 'duration = 900\nobjective = "throughput"\nbaseline = 0\nworkload.clients = 4\n' + TWO
    found = played(text, chain((100,) * 12), segment_s=0.01, memory=900)
    assert found.steps > 100_000  # how many a second, benchmarks/lab.py measures
    assert max(request.ended_s for request in found.requests) > 899


@settings(max_examples=15, deadline=None)
@given(
    speeds=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4),
    clients=st.integers(1, 5),
    kill_at=st.floats(1.0, 9.0),
    throughput=st.booleans(),
)
def test_every_request_ends_and_work_is_conserved(
    speeds: list[float], clients: int, kill_at: float, throughput: bool
) -> None:
    rows = ["duration = 10", f"workload.clients = {clients}", "baseline = 0"]
    rows += ['objective = "throughput"'] if throughput else []
    for number, speed in enumerate(speeds):
        rows += ["[[board]]", f'name = "b{number}"', f"speed = {speed}"]
    if len(speeds) > 1:
        rows += ["[[event]]", f"at = {kill_at}", 'kill = "b0"']
    found = played("\n".join(rows), segment_s=0.02)
    assert found.requests
    assert {request.fate for request in found.requests} == {"right"}
    assert all(request.took_s >= 0.06 / max(speeds) for request in found.requests)
    for usage in found.usage:
        assert usage.cpu_s <= found.duration_s * (usage.speed_asked or 1.0) * (1 + 1e-9) + 0.06
    # What was answered was computed: 60 ms of a board of speed 1 each.
    assert sum(usage.cpu_s for usage in found.usage) >= 0.06 * (len(found.requests) - clients) - 1e-6


def test_the_best_plan_of_each_strategy_stands_beside_the_planners_choice() -> None:
    # One request at a time: local wins, and the others are put in force all the same.
    text = 'duration = 10\nbaselines = ["pipeline", "replicate", "tensor"]\n[[board]]\nname = "a"\n'
    found = played(text + '[[board]]\nname = "b"\nspeed = 0.5\n')
    own = 0.3 + 2 * MESSAGE_S + SERVE_S
    pipeline, replicate, tensor = found.baselines
    assert (found.switches[0].strategy, found.switches[0].boards) == ("local", (A,))
    assert quantile_s(found.requests, 0.5) == pytest.approx(own, abs=1e-6)
    assert set(pipeline.boards) == set(replicate.boards) == {A, B}
    # At best two segments on a and one on b, which takes twice as long; two messages more.
    assert quantile_s(pipeline.requests, 0.5) == pytest.approx(own + 0.1 + 2 * MESSAGE_S, abs=1e-5)
    assert {request.fate for request in (*pipeline.requests, *replicate.requests)} == {"right"}
    assert (tensor.boards, tensor.requests) == ((), ())
    without = played(text.replace("baselines", "#") + '[[board]]\nname = "b"\nspeed = 0.5\n')
    assert len(found.requests) == len(without.requests)


# --- its parts --------------------------------------------------------------------------------------


def wiring(rate: float | None, **more: object) -> Wiring:
    cables = {A: Shape(rate_bits_per_s=rate), B: Shape(rate_bits_per_s=rate), DESK: Shape()}
    return Wiring(numbers={A: 1, B: 2, DESK: 3}, cables=cables, **more)  # type: ignore[arg-type]


def test_messages_on_one_cable_queue_and_on_two_do_not() -> None:
    rate = 8e6 / PAYLOAD_SHARE  # a megabyte a second of payload
    traffic = Traffic(wiring(rate))
    size = 100_000 - FRAME_BYTES  # a tenth of a second
    assert traffic.send(A, B, size, 0.0) == pytest.approx(0.1 + MESSAGE_S)
    assert traffic.send(A, DESK, size, 0.0) == pytest.approx(0.2 + MESSAGE_S)  # after the first, on a's cable
    assert traffic.send(B, A, size, 0.0) == pytest.approx(0.1 + MESSAGE_S)  # the other direction is free
    assert traffic.send(A, B, size, 1.0) == pytest.approx(1.1 + MESSAGE_S)


def test_a_cable_goes_on_while_the_receivers_is_taken() -> None:
    cables = dict.fromkeys((A, B, C), Shape(rate_bits_per_s=8e6 / PAYLOAD_SHARE))
    traffic = Traffic(Wiring(numbers={A: 1, B: 2, C: 3}, cables=cables))
    size = 100_000 - FRAME_BYTES  # a tenth of a second
    assert traffic.send(C, B, size, 0.0) == pytest.approx(0.1 + MESSAGE_S)
    assert traffic.send(A, B, size, 0.0) == pytest.approx(0.2 + MESSAGE_S)  # it waits before b's cable
    assert traffic.send(A, C, size, 0.0) == pytest.approx(0.2 + MESSAGE_S)  # and a's is free after 0.1 s


def test_in_the_air_all_messages_queue() -> None:
    traffic = Traffic(wiring(None, air_bits_per_s=8e6 / PAYLOAD_SHARE))
    size = 100_000 - FRAME_BYTES
    assert traffic.send(A, B, size, 0.0) == pytest.approx(0.1 + MESSAGE_S)
    assert traffic.send(B, A, size, 0.0) == pytest.approx(0.2 + MESSAGE_S)


def test_links_are_shared_where_the_air_is_what_limits_them() -> None:
    def shared(rate: float | None, air: float | None) -> bool | None:
        found = Traffic(wiring(rate, air_bits_per_s=air)).profile(A, B)
        assert found is not None
        return found.shared

    assert shared(None, 8e6)
    assert not shared(8e6, None)
    assert not shared(2e6, 8e6), "the air carries both ways at once"


def test_who_is_cut_off_gets_nothing() -> None:
    traffic = Traffic(wiring(None, apart=frozenset((A,))))
    assert traffic.send(A, B, 1, 0.0) == math.inf
    assert traffic.profile(A, B) is None


def test_acts_happen_in_the_order_of_their_times_and_of_their_making() -> None:
    timeline, seen = Timeline(), list[int]()
    for number, at_s in enumerate((2.0, 1.0, 2.0, 0.0)):
        timeline.at(at_s, lambda number=number: seen.append(number))  # type: ignore[misc]
    timeline.run(lambda: False, 1.5)
    assert (seen, timeline.now_s) == ([3, 1], 1.5)
    timeline.run(lambda: False, 9.0)
    assert seen == [3, 1, 0, 2]


def test_a_board_that_dies_forgets_what_it_was_doing() -> None:
    timeline, done = Timeline(), list[float]()
    worker = Worker(timeline, A, {"s": 1.0}, 0.5)
    worker.run("s", 1.0, done.append)
    worker.run("s", 0.25, done.append)
    timeline.run(lambda: False, 2.1)
    assert done == [2.0]
    worker.die()
    timeline.run(lambda: False, 9.0)
    assert done == [2.0]


def test_each_kind_of_step_becomes_moves() -> None:
    manifest = chain((1, 1), cut_bytes=100)
    lane = Lane(
        programs={
            A: Program(
                steps=(
                    Run(segment="s00"),
                    Exchange(kind="send", tag=0, tensors=("h1",), peer=B),
                    Exchange(kind="recv", tag=1, tensors=("y",), peer=B),
                )
            ),
            B: Program(
                steps=(
                    Exchange(kind="recv", tag=0, tensors=("h1",), peer=A),
                    Run(segment="s01"),
                    Exchange(kind="send", tag=1, tensors=("y",), peer=A),
                )
            ),
        },
        weight=1.0,
    )
    assert moves_of(manifest, Calibration(seconds={}), lane) == {
        A: (Work("s00", 1.0), Hand(0, ((B, 100),)), Await(1, (B,))),
        B: (Await(0, (A,)), Work("s01", 1.0), Hand(1, ((A, 100),))),
    }


def test_a_large_cluster_is_only_larger() -> None:
    rows = ['objective = "throughput"', "max_boards = 4", "duration = 10", "baseline = 0"]
    rows += ["[[board]]", 'name = "pi"', "count = 60"]
    found = played("\n".join(rows), segment_s=0.05)
    assert len({board for switch in found.switches for board in switch.boards}) <= 4
    assert {request.fate for request in found.requests} == {"right"}
    assert len(found.usage) == 60
    assert dataclasses.asdict(found)["scenario"] == "s"
