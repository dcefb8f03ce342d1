"""Programs with collectives in virtual time, against schedules that one can work out by hand.

The model has 10 tokens of 8 floats, so a token's row is 32 bytes; see `tests.build.sharded`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from shoal.codec import PLAIN, Codec, codec_of
from shoal.coordinator.cost import predict
from shoal.crossing import USUAL, decode_s, encode_s
from shoal.lab.asks import Ask
from shoal.lab.calibration import Calibration, completed
from shoal.lab.report import Fate
from shoal.lab.requests import Dispatcher
from shoal.lab.scenario import Shape
from shoal.lab.shaping import DESK, PAYLOAD_SHARE, Wiring
from shoal.lab.steps import Await, Code, Hand, Move, Work, moves_of
from shoal.lab.traffic import FRAME_BYTES, MESSAGE_S, Traffic
from shoal.lab.virtual import Timeline, Worker
from shoal.manifest import WHOLE, Manifest, ShardCollective, ShardRun, Slice
from shoal.program import Collective, Lane, Plan, Prediction, Program, Run
from shoal.records import BoardId, ExchangeCosts, Law, TensorSpec
from shoal.sharding import programs
from tests import build
from tests.build import BUNDLE, A, B, C, address_of, blob, headed, sha, sharded

ROW = 32
SIZES = {"batch": 1, "tokens": 10}
"""Of the sample."""
RANGES2, RANGES3 = 24 + 3 * 8, 24 + 4 * 8
"""Bytes of its range, and of all ranges, that a scatter among two or three hands each board."""

Q0 = Law(base_s=0.1, row_s=0.02, pair_s=0.0, column_s=0.0, residual=0.0, points=4)
Q1 = Law(base_s=0.0, row_s=0.01, pair_s=0.002, column_s=0.0, residual=0.0, points=4)
LINKS = {board: build.link(1e-6, 1e12) for board in (A, B, C)}
FREE = USUAL.scaled(0.0)
CODED = replace(USUAL, step_s=0.0, message_s=0.0)
CALIBRATION = Calibration(
    seconds={WHOLE: 1.0, "s00": 1.0, "q0": 0.2, "q1": 0.15}, laws={"q0": Q0, "q1": Q1}, exchanges=FREE
)


def lane_of(
    manifest: Manifest,
    boards: Sequence[BoardId],
    shares: Sequence[float],
    codec: Codec = PLAIN,
    chunks: int = 1,
) -> Lane:
    """Return a lane in which `boards` share each request, led by the first, with a codec where all gather."""
    made = programs(manifest.shardings[0], boards, boards[0], shares, chunks=chunks)

    def coded(program: Program) -> Program:
        return Program(
            steps=tuple(
                replace(step, codec=codec)
                if isinstance(step, Collective) and step.kind == "gather" and step.root is None
                else step
                for step in program.steps
            )
        )

    return Lane(programs={board: coded(program) for board, program in made.items()}, weight=1.0)


def answered_s(
    *lanes: Lane,
    manifest: Manifest | None = None,
    sizes: Mapping[str, int] = SIZES,
    rate: float | None = None,
    air: float | None = None,
    speeds: Mapping[BoardId, float] | None = None,
    asked: int = 1,
    calibration: Calibration = CALIBRATION,
    on_run: Callable[[BoardId, str, float, float], None] = lambda *_ran: None,
) -> list[float]:
    """Return when requests are answered that are asked at once, with cables of `rate` bytes a second."""
    boards = list(dict.fromkeys(board for lane in lanes for board in lane.programs))
    bits = None if rate is None else 8 * rate / PAYLOAD_SHARE
    wiring = Wiring(
        numbers={board: number for number, board in enumerate((*boards, DESK), start=1)},
        cables={**dict.fromkeys(boards, Shape(rate_bits_per_s=bits)), DESK: Shape()},
        air_bits_per_s=None if air is None else 8 * air / PAYLOAD_SHARE,
    )
    timeline, traffic = Timeline(), Traffic(wiring)
    workers = {
        board: Worker(timeline, board, calibration.seconds, (speeds or {}).get(board, 1.0))
        for board in boards
    }
    dispatcher = Dispatcher(
        timeline,
        traffic,
        manifest or sharded(),
        calibration,
        workers,
        on_run,
        lambda _board: True,
    )
    plan = Plan(
        epoch=1,
        bundle=BUNDLE,
        model="model",
        strategy="sequence",
        lead=boards[0],
        lanes=lanes,
        addresses={board: address_of(board) for board in boards},
        predicted=Prediction(latency_s=1.0, throughput_per_s=1.0),
        reason="test",
    )
    dispatcher.serve(boards[0], plan)
    ended: list[float] = []

    def end(fate: Fate) -> None:
        assert fate == "right"
        ended.append(timeline.now_s)

    for _ in range(asked):
        dispatcher.submit(Ask(asked_s=0.0, input_bytes=0, output_bytes=0, sizes=sizes, ended=end), 0.0)
    timeline.run(lambda: False, 100.0)
    assert len(ended) == asked
    return ended


def q0_s(rows: int) -> float:
    return 0.1 + 0.02 * rows


def q1_s(rows: int, columns: int = 10) -> float:
    return (0.01 + 0.002 * columns) * rows


def work(segment: str, share: float) -> Work:
    return Work(segment, round(share, 9))


def moved(manifest: Manifest, lane: Lane, exchanges: ExchangeCosts = FREE) -> dict[BoardId, tuple[Move, ...]]:
    """Return the moves of a lane, with shares that can be compared."""
    found = moves_of(manifest, replace(CALIBRATION, exchanges=exchanges), lane)
    return {
        board: tuple(work(m.segment, m.share) if isinstance(m, Work) else m for m in moves)
        for board, moves in found.items()
    }


def test_each_collective_becomes_what_is_handed_and_what_is_awaited() -> None:
    lane = lane_of(sharded(), (A, B, C), (0.5, 0.3, 0.2))
    moves = moved(sharded(), lane)
    assert moves[A] == (
        Hand(0, ((B, 3 * ROW + RANGES3), (C, 2 * ROW + RANGES3))),
        work("q0", q0_s(5) / 0.2),
        Hand(2, ((B, 5 * ROW), (C, 5 * ROW))),
        Await(2, (B, C)),
        work("q1", q1_s(5) / 0.15),
        Await(4, (B, C)),
    )
    assert moves[C] == (
        Await(0, (A,)),
        work("q0", q0_s(2) / 0.2),
        Hand(2, ((A, 2 * ROW), (B, 2 * ROW))),
        Await(2, (A, B)),
        work("q1", q1_s(2) / 0.15),
        Hand(4, ((A, 2 * ROW),)),
    )


def test_a_causal_gather_waits_for_earlier_boards_and_attends_to_fewer_tokens() -> None:
    manifest = sharded(causal=True)
    moves = moved(manifest, lane_of(manifest, (A, B, C), (0.5, 0.3, 0.2)))
    assert moves[A][2:4] == (
        Hand(2, ((B, 5 * ROW), (C, 5 * ROW))),
        work("q1", q1_s(5, columns=5) / 0.15),
    )
    assert moves[B][2:5] == (
        Hand(2, ((C, 3 * ROW),)),
        Await(2, (A,)),
        work("q1", q1_s(3, columns=8) / 0.15),
    )


def test_a_codec_shrinks_what_is_handed_to_all_and_means_what_is_attended() -> None:
    lane = lane_of(sharded(), (A, B), (0.6, 0.4), codec_of("means2-i8"))
    coded = moved(sharded(), lane, CODED)
    moves = {board: [move for move in each if not isinstance(move, Code)] for board, each in coded.items()}
    row = 8 + 4  # numbers of one byte and their scale
    assert moves[A][2] == Hand(2, ((B, 3 * row),))
    assert moves[B][2] == Hand(2, ((A, 2 * row),))
    assert moves[A][4] == work("q1", q1_s(6, columns=6 + 2) / 0.15)
    assert moves[B][5] == Hand(4, ((A, 4 * ROW),))  # the answer goes as it is
    for board, own, others in ((A, 6, 4), (B, 4, 6)):
        handed, came = (
            next(index for index, move in enumerate(coded[board]) if isinstance(move, kind) and move.tag == 2)
            for kind in (Hand, Await)
        )
        made, back = coded[board][handed - 1], coded[board][came + 1]
        assert isinstance(made, Code)
        assert isinstance(back, Code)
        assert made.seconds == pytest.approx(encode_s(CODED, codec_of("means2-i8"), own * ROW, own * 6))
        assert back.seconds == pytest.approx(decode_s(CODED, codec_of("means2-i8"), others * ROW))


def test_taking_part_costs_each_board_time_as_the_planner_reckons_it() -> None:
    lane = lane_of(sharded(), (A, B, C), (0.5, 0.3, 0.2))
    costs = replace(FREE, step_s=1.0, message_s=0.25)
    moves = moved(sharded(), lane, costs)
    spent = {
        board: [move.seconds for move in each if isinstance(move, Code)] for board, each in moves.items()
    }
    # the scatter, the gather of k both ways, the answer; a message at either end is free
    assert spent == {A: [1.25, 1.25, 1.25, 1.25], B: [1.0, 1.25, 1.25, 1.0], C: [1.0, 1.25, 1.25, 1.0]}
    boards = {board: build.profile(sharded(), 0.0001, links=LINKS) for board in (A, B, C)}
    timed = {b: replace(each, laws={"q0": Q0, "q1": Q1}, exchanges=costs) for b, each in boards.items()}
    predicted = predict(sharded(), timed, frozenset(), A, (lane,))
    assert predicted.exchange_s == pytest.approx(sum(spent[A]))


def test_each_chunk_is_handed_out_when_it_is_made() -> None:
    moves = moved(sharded(), lane_of(sharded(), (A, B, C), (0.6, 0.3, 0.1), chunks=2))
    assert moves[A] == (
        Hand(0, ((B, 3 * ROW + RANGES3), (C, ROW + RANGES3))),
        *(work("q0", q0_s(3) / 0.2), Hand(2, ((B, 3 * ROW), (C, 3 * ROW)))),
        *(work("q0", q0_s(3) / 0.2), Hand(2, ((B, 3 * ROW), (C, 3 * ROW)))),
        Await(2, (B, C, B)),
        work("q1", q1_s(6) / 0.15),
        Await(4, (B, C)),
    )
    assert moves[C] == (
        Await(0, (A,)),
        work("q0", q0_s(1) / 0.2),
        Hand(2, ((A, ROW), (B, ROW))),
        Await(2, (A, B, A, B)),
        work("q1", q1_s(1) / 0.15),
        Hand(4, ((A, ROW),)),
    )


def test_a_chunk_travels_while_the_next_is_computed() -> None:
    rate = 1000.0
    (took_s,) = answered_s(lane_of(sharded(), (A, B), (0.6, 0.4), chunks=2), rate=rate)

    def wire_s(size_bytes: int) -> float:
        return (size_bytes + FRAME_BYTES) / rate + MESSAGE_S

    # a's uplink is never idle: it makes three rows of k while b's of x go out, and three while those do.
    b_begins = wire_s(0) + wire_s(4 * ROW + RANGES2)
    a_k_at_b = b_begins + 2 * wire_s(3 * ROW)
    assert wire_s(0) + 2 * q0_s(3) < b_begins + wire_s(3 * ROW)
    assert b_begins + 2 * q0_s(2) < a_k_at_b
    # b's first two rows of k are at a when it has made two more; its part of y is what comes last.
    k_at_a = b_begins + 2 * q0_s(2) + wire_s(2 * ROW)
    y_at_a = a_k_at_b + q1_s(4) + wire_s(4 * ROW)
    assert k_at_a + q1_s(6) < y_at_a
    assert took_s == pytest.approx(y_at_a + wire_s(0), abs=5 * MESSAGE_S)


def test_what_the_lead_alone_reads_is_handed_to_it_alone() -> None:
    manifest = headed(causal=True)
    moves = moved(manifest, lane_of(manifest, (B, A, C), (0.5, 0.3, 0.2)), replace(FREE, step_s=1.0))
    assert moves[B] == (
        *(Code(1.0), Hand(0, ((A, 3 * ROW + RANGES3), (C, 2 * ROW + RANGES3)))),
        work("q0", q0_s(5) / 0.2),
        *(Await(2, (A, C)), Code(1.0)),
        work("q1", q1_s(1) / 0.15),
    )
    assert moves[A][2:] == (work("q0", q0_s(3) / 0.2), Code(1.0), Hand(2, ((B, 3 * ROW),)))
    assert moves[C][2:] == (work("q0", q0_s(2) / 0.2), Code(1.0), Hand(2, ((B, 2 * ROW),)))


def test_the_lead_makes_at_once_what_it_hands_to_nobody() -> None:
    """The others hand it their rows in chunks."""
    moves = moved(headed(), lane_of(headed(), (A, B, C), (0.6, 0.3, 0.1), chunks=2))
    assert moves[A] == (
        Hand(0, ((B, 3 * ROW + RANGES3), (C, ROW + RANGES3))),
        work("q0", q0_s(6) / 0.2),
        Await(2, (B, C, B)),
        work("q1", q1_s(1) / 0.15),
    )
    assert moves[B] == (
        Await(0, (A,)),
        *(work("q0", q0_s(2) / 0.2), Hand(2, ((A, 2 * ROW),))),
        *(work("q0", q0_s(1) / 0.2), Hand(2, ((A, ROW),))),
    )


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_planner_reckons_with_one_row_as_it_is_simulated(chunks: int) -> None:
    """At a rate at which frames and what a message costs at either end hardly count."""
    rate = 100.0
    lane = lane_of(headed(), (A, B), (0.4, 0.6), chunks=chunks)
    (took_s,) = answered_s(lane, manifest=headed(), rate=rate)
    links = {board: build.link(1e-6, rate) for board in (A, B)}
    timed = {
        board: replace(build.profile(headed(), 1.0, links=links), laws={"q0": Q0, "q1": Q1}, exchanges=FREE)
        for board in (A, B)
    }
    predicted = predict(headed(), timed, frozenset(), A, (lane,))
    frames_s = (1 + 1 + chunks + 1) * (FRAME_BYTES / rate + MESSAGE_S)  # the ask, the answer, what they hand
    assert took_s == pytest.approx(predicted.latency_s + frames_s, abs=1e-3)


def test_two_boards_without_limits_meet_at_each_gather() -> None:
    (took_s,) = answered_s(lane_of(sharded(), (A, B), (0.5, 0.5)))
    # The ask, the scatter, b's part of the answer, and the answer; b has a's k when it has its own.
    assert took_s == pytest.approx(q0_s(5) + q1_s(5) + 4 * MESSAGE_S, abs=1e-5)


def test_the_slowest_board_is_waited_for_at_each_gather() -> None:
    (took_s,) = answered_s(lane_of(sharded(), (A, B), (0.5, 0.5)), speeds={B: 0.5})
    assert took_s == pytest.approx(2 * (q0_s(5) + q1_s(5)) + 4 * MESSAGE_S, abs=1e-5)


def test_an_uplink_carries_its_copies_one_after_the_other() -> None:
    # 100 bytes a second: what is handed takes long, so that what computing takes hardly counts.
    rate = 100.0
    (took_s,) = answered_s(lane_of(sharded(), (A, B, C), (0.4, 0.3, 0.3)), rate=rate)

    def wire_s(size_bytes: int) -> float:
        return (size_bytes + FRAME_BYTES) / rate

    b_begins = wire_s(0) + wire_s(3 * ROW + RANGES3)  # after the ask, on a's cable only a's own copies count
    c_begins = b_begins + wire_s(3 * ROW + RANGES3)
    # a has handed out its rows of k behind the two copies of the scatter, to b first and then to c.
    a_k_at_b = c_begins + wire_s(4 * ROW)
    a_k_at_c = a_k_at_b + wire_s(4 * ROW)
    # b's rows go to a and then to c, whose cable has a's rows until then; c's go to a behind b's, then to b.
    b_k_at_a = b_begins + q0_s(3) + wire_s(3 * ROW)
    b_k_at_c = a_k_at_c + wire_s(3 * ROW)
    c_k_at_a = max(c_begins + q0_s(3), b_k_at_a) + wire_s(3 * ROW)
    c_k_at_b = c_k_at_a + wire_s(3 * ROW)
    b_done = max(a_k_at_b, c_k_at_b) + q1_s(3)
    c_done = b_k_at_c + q1_s(3)
    first, last = sorted((b_done, c_done))
    y_at_a = max(first + wire_s(3 * ROW), last) + wire_s(3 * ROW)
    assert took_s == pytest.approx(y_at_a + wire_s(0), abs=20 * MESSAGE_S)


def test_in_the_air_all_flows_share() -> None:
    rate = 100.0
    (took_s,) = answered_s(lane_of(sharded(), (A, B), (0.5, 0.5)), air=rate)
    sizes = (0, 5 * ROW + RANGES2, 5 * ROW, 5 * ROW, 5 * ROW, 0)  # ask, scatter, k both ways, y, answer
    carried_s = sum(size + FRAME_BYTES for size in sizes) / rate
    # The air is never idle: b computes q0 while it carries a's k, and q1 while it carries b's own.
    assert took_s == pytest.approx(carried_s, abs=20 * MESSAGE_S)


def test_bytes_travel_while_the_board_computes() -> None:
    manifest = sharded()
    sharding = manifest.shardings[0]
    scatter, q0, gather, q1, last = sharding.steps
    beside = replace(manifest.by_name["q0"], name="beside", inputs=(sharding.segments[0].inputs), outputs=())
    early = replace(
        sharding,
        steps=(scatter, q0, gather, ShardRun(segment="beside", lead_only=False), q1, last),
        segments=(*sharding.segments, beside),
    )
    moves = moves_of(
        replace(manifest, shardings=(early,)),
        replace(CALIBRATION, seconds={**CALIBRATION.seconds, "beside": 0.2}),
        lane_of(replace(manifest, shardings=(early,)), (A, B), (0.5, 0.5)),
    )
    kinds = [type(move) for move in moves[A]]
    assert kinds == [Hand, Work, Hand, Work, Await, Work, Await]


def test_requests_follow_one_another_through_a_sharding() -> None:
    first_s, second_s = answered_s(lane_of(sharded(), (A, B), (0.5, 0.5)), asked=2)
    # Its boards compute all the time: the second request fills what the first leaves.
    assert second_s - first_s < q0_s(5) + q1_s(5)
    assert second_s >= 2 * (q0_s(5) + q1_s(5))


def test_lanes_are_for_requests_of_their_sizes() -> None:
    shared = replace(lane_of(sharded(), (A, B), (0.5, 0.5)), least={"tokens": 8})
    alone = Lane(programs={A: Program(steps=(Run(segment=WHOLE),))}, weight=1.0)
    together_s = answered_s(shared, asked=2)
    assert answered_s(alone, shared, asked=2) == together_s
    apart = [1.0, 2.0]  # all on a: none goes where there is room, for that lane is for longer ones
    assert answered_s(alone, shared, sizes={**SIZES, "tokens": 7}, asked=2) == pytest.approx(apart, abs=1e-3)


def test_a_request_that_no_lane_is_for_runs_in_one_piece() -> None:
    shared = replace(lane_of(sharded(), (A, B), (0.5, 0.5)), least={"tokens": 8})
    assert answered_s(shared, sizes={**SIZES, "tokens": 7}) == pytest.approx([1.0], abs=1e-3)


# --- what was not measured ---------------------------------------------------------------------------


def test_without_a_law_a_segment_takes_a_time_in_proportion_to_its_rows() -> None:
    found = completed(sharded(), Calibration(seconds={WHOLE: 1.0, "q0": 0.2}))
    law = found.laws["q0"]
    assert law.seconds(5, 5) == pytest.approx(0.2)
    assert law.seconds(10, 10) == pytest.approx(0.4)
    assert "q1" not in found.laws


SLICE = Slice(
    tensor="w",
    blob=blob(9, 400),
    axis=0,
    outer=1,
    units=4,
    unit_bytes=100,
    sha256s=tuple(sha(n) for n in range(4)),
)


def by_weights() -> Manifest:
    """Return a model that boards share by weights: p of 4 units, whose outputs are added up."""
    manifest = sharded()
    x, y = manifest.inputs[0], manifest.outputs[0]
    part = TensorSpec(name="y.part", dtype="float32", shape=y.shape)
    whole = replace(manifest.whole, flops=100)
    segment = replace(
        whole,
        name="p",
        inputs=(x,),
        outputs=(part,),
        flops=50,
        units=4,
        slices=(SLICE,),
        weights=(SLICE.blob,),
    )
    steps = (
        ShardCollective(kind="broadcast", tensors=(x,), made=(x,), axes=(), to_lead=False, rows=()),
        ShardRun(segment="p", lead_only=False),
        ShardCollective(kind="reduce", tensors=(part,), made=(y,), axes=(), to_lead=True, rows=()),
    )
    tensor = replace(
        manifest.shardings[0],
        name="tensor",
        strategy="tensor",
        point="",
        units=4,
        sizes={},
        steps=steps,
        segments=(segment,),
    )
    return replace(manifest, whole=whole, shardings=(tensor,))


def test_a_part_of_the_weights_takes_what_its_law_says() -> None:
    manifest = by_weights()
    law = Law(base_s=0.1, row_s=0.2, pair_s=0.0, column_s=0.05, residual=0.0, points=3)
    found = completed(manifest, Calibration(seconds={WHOLE: 1.0}, laws={"p": law}))
    assert found.seconds["p"] == pytest.approx(0.1 + 2 * 0.2 + 0.05)
    moves = moves_of(manifest, found, lane_of(manifest, (A, B), (0.75, 0.25)))
    shares = {board: next(move.share for move in moves[board] if isinstance(move, Work)) for board in (A, B)}
    assert shares == pytest.approx({A: (0.1 + 3 * 0.2 + 0.05) / 0.55, B: (0.1 + 0.2 + 0.05) / 0.55})


def test_a_part_of_the_weights_takes_its_part_of_the_operations() -> None:
    manifest = by_weights()
    found = completed(manifest, Calibration(seconds={WHOLE: 1.0}, exchanges=FREE))
    assert found.seconds["p"] == 0.5  # of two of four units, as the manifest counts
    moves = moves_of(manifest, found, lane_of(manifest, (A, B), (0.75, 0.25)))
    assert moves[A] == (Hand(0, ((B, 10 * ROW),)), Work("p", 1.5), Await(2, (B,)))
    assert moves[B] == (Await(0, (A,)), Work("p", 0.5), Hand(2, ((A, 10 * ROW),)))
