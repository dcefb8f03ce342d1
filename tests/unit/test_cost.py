"""What boards that share a request cost, worked out by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.codec import PLAIN, Codec, codec_of
from shoal.coordinator.cost import held_bytes, predict
from shoal.coordinator.wires import SWITCHED, Cells, Wires, busiest_s, cells_of
from shoal.coordinator.work import run_s
from shoal.crossing import COPY_BYTES_PER_S, USUAL, decode_s, encode_s
from shoal.errors import PlanError
from shoal.manifest import COLUMNS, ROWS, Manifest, ShardRun, Slice
from shoal.program import Exchange, Lane, Prediction, Program, Run
from shoal.records import BoardId, Law, LinkProfile, Profile, TensorSpec
from shoal.sharding import programs
from tests import build
from tests.build import A, B, C, D

TOKENS = build.sharded()
E = BoardId("e")
ROW = 32
"""Bytes of a token's k, y or x."""
TINY = 1e-6
"""Copies of some hundred bytes take less."""


def law(row_s: float = 0.0, pair_s: float = 0.0, base_s: float = 0.0) -> Law:
    return Law(base_s=base_s, row_s=row_s, pair_s=pair_s, column_s=0.0, residual=0.0, points=4)


def board(
    manifest: Manifest, links: Mapping[BoardId, LinkProfile], pace: float = 1.0, pair_s: float = 0.0
) -> Profile:
    """Return a board that takes 0.1 s for a row of q0 and 0.2 s for one of q1, times `pace`."""
    laws = {"q0": law(0.1 * pace), "q1": law(0.2 * pace, pair_s)}
    return replace(build.profile(manifest, 5.0 * pace, links=links), laws=laws)


def fleet(
    *boards: BoardId, manifest: Manifest = TOKENS, rtt_s: float = 0.2, goodput: float = 1000.0
) -> dict[BoardId, Profile]:
    links = {peer: build.link(rtt_s, goodput) for peer in boards}
    return {each: board(manifest, links) for each in boards}


def together(
    profiles: Mapping[BoardId, Profile],
    shares: Sequence[float],
    *,
    manifest: Manifest = TOKENS,
    codec: Codec = PLAIN,
    cells: Cells = SWITCHED,
    chunks: int = 1,
) -> Prediction:
    boards = list(profiles)
    told = programs(manifest.shardings[0], boards, boards[0], shares, codec, chunks)
    return predict(manifest, profiles, frozenset(), boards[0], (Lane(programs=told, weight=1.0),), cells)


def test_two_boards_that_share_the_tokens() -> None:
    found = together(fleet(A, B), (0.6, 0.4))
    # b has its 4 rows of x, and 6 numbers of ranges, after (128 + 48) / 1000 + 0.1 s, and its k 0.4 s later;
    # they are at a 0.128 + 0.1 s later, when a has long made its own; then a needs 6 * 0.2 s for y
    ready_s = (0.176 + 0.1) + 0.4 + (0.128 + 0.1)
    assert found.latency_s == pytest.approx(ready_s + 1.2, abs=TINY)
    assert found.compute_s == pytest.approx(6 * 0.3)
    assert found.waits == 1
    assert found.carried_bytes == 176 + (6 + 4) * ROW + 4 * ROW
    assert found.throughput_per_s == pytest.approx(1 / 1.8, rel=TINY)


def test_the_lead_waits_for_the_last_rows_of_the_answer() -> None:
    found = together(fleet(A, B), (0.2, 0.8))
    # b: 8 rows of x after (256 + 48) / 1000 + 0.1 s, k after 0.8 s more; a's k came long before;
    # 8 * 0.2 s for y, and 0.256 + 0.1 s until that is at a
    assert found.latency_s == pytest.approx(0.404 + 0.8 + 1.6 + 0.356, abs=TINY)
    assert found.waits == 2


def test_bytes_travel_while_boards_compute() -> None:
    """Between handing k over and needing that of others each board has 0.15 s a row to do."""
    sharding = TOKENS.shardings[0]
    first, second = sharding.segments
    g = TensorSpec(name="g", dtype="float32", shape=("batch", ROWS, 8))
    h = first.outputs[0]
    between = replace(first, name="q0b", kind="q0b", inputs=(h,), outputs=(g,))
    steps = list(sharding.steps)
    steps.insert(3, ShardRun(segment="q0b", lead_only=False))
    busy = replace(sharding, steps=tuple(steps), segments=(first, between, second))
    manifest = replace(TOKENS, shardings=(busy,))
    profiles = {
        name: replace(each, laws={**each.laws, "q0b": law(0.15)})
        for name, each in fleet(A, B, manifest=manifest).items()
    }
    found = together(profiles, (0.6, 0.4), manifest=manifest)
    # a: 0.6 + 0.9 s until it needs b's k, which is there after 0.276 + 0.4 + 0.228 s; then 1.2 s
    assert found.latency_s == pytest.approx(0.6 + 0.9 + 1.2, abs=TINY)
    assert found.waits == 0


def test_what_the_lead_alone_runs_attends_to_all_rows() -> None:
    """Also where boards attend to earlier ones only."""
    found = {}
    for causal in (False, True):
        (sharding,) = build.sharded(causal=causal).shardings
        x, q0, gather, q1, _ = sharding.steps
        assert isinstance(q1, ShardRun)
        steps = (x, q0, gather, replace(q1, lead_only=True))
        assert replace(sharding, steps=steps).of_lead == {"q1"}
        manifest = replace(TOKENS, shardings=(replace(sharding, steps=steps),))
        profiles = {
            name: replace(each, laws={**each.laws, "q1": law(0.0, 0.1)})
            for name, each in fleet(A, B, manifest=manifest).items()
        }
        found[causal] = together(profiles, (0.6, 0.4), manifest=manifest).compute_s
    assert found[True] == found[False]


def test_the_lead_copies_the_rows_of_all_to_its_device_where_it_alone_reads_them() -> None:
    """2 rows of x in, h and k out, then all 10 of k in and one out, whether or not boards see later rows."""
    for causal in (False, True):
        manifest = build.headed(causal=causal)
        profiles = {
            name: replace(each, staging_s=0.5) for name, each in fleet(A, B, manifest=manifest).items()
        }
        found = together(profiles, (0.2, 0.8), manifest=manifest)
        assert found.staging_s == pytest.approx(0.5 * (2 + 2 * 2 + 10 + 1) * ROW)


def test_what_the_lead_alone_reads_comes_to_it_alone() -> None:
    """b and c hand over their k, of 3 and 2 rows, and are done; a takes it in and makes the answer."""
    profiles = fleet(A, B, C, manifest=build.headed())
    costs = replace(build.COSTS, message_s=0.0, decode_s={**build.COSTS.decode_s, "f32": 0.5 / ROW})
    profiles = {name: replace(each, exchanges=costs) for name, each in profiles.items()}
    found = together(profiles, (0.5, 0.3, 0.2), manifest=build.headed())
    scattered = (3 + 2) * ROW + 2 * (24 + 32)
    assert found.carried_bytes == scattered + (3 + 2) * ROW
    # b and c begin when all of x has left a; b's k begins when c's two rows have come
    begin_s = scattered / 1000 + 0.1
    k_at_a_s = max(begin_s + 0.2 + 0.064, begin_s + 0.3) + 0.096 + 0.1
    assert found.exchange_s == pytest.approx(5 * 0.5), "nobody else takes anything in"
    assert found.latency_s == pytest.approx(k_at_a_s + 5 * 0.5 + found.compute_s - 0.5, abs=TINY)
    assert found.throughput_per_s == pytest.approx(1 / (found.compute_s + found.exchange_s), rel=TINY)


def test_a_chunk_travels_while_the_next_is_computed() -> None:
    profiles = {
        name: replace(each, laws={**each.laws, "q0": law(0.1, base_s=0.05)})
        for name, each in fleet(A, B, goodput=400.0).items()
    }
    found = together(profiles, (0.6, 0.4), chunks=2)
    # b has its rows of x after 176 / 400 + 0.1 s; two rows of k take it 0.05 + 0.2 s, and so do two more,
    # while those are on their way for 64 / 400 s; the second message costs a bit at both ends
    ready_s = (0.44 + 0.1) + 2 * 0.25 + (0.16 + 0.1)
    assert found.latency_s == pytest.approx(ready_s + 2 * USUAL.message_s + 1.2, abs=TINY)
    assert found.compute_s == pytest.approx(2 * 0.05 + 0.6 + 1.2)
    whole_s = together(profiles, (0.6, 0.4)).latency_s
    assert whole_s == pytest.approx((0.44 + 0.1) + 0.45 + (0.32 + 0.1) + 1.2, abs=TINY)
    few = together(profiles, (0.9, 0.1), chunks=3)  # b has one row and sends it at once
    assert few.compute_s == pytest.approx(3 * 0.05 + 0.9 + 1.8)
    assert few.carried_bytes == ROW + 48 + (9 + 1) * ROW + ROW


def test_a_codec_makes_fewer_bytes_and_more_work() -> None:
    profiles = fleet(A, B)
    plain, half = together(profiles, (0.6, 0.4)), together(profiles, (0.6, 0.4), codec=codec_of("f16"))
    assert plain.carried_bytes - half.carried_bytes == 10 * ROW / 2
    assert plain.latency_s - half.latency_s == pytest.approx(4 * ROW / 2 / 1000, abs=TINY)
    big = 10_000_000
    assert encode_s(USUAL, PLAIN, big, big) == pytest.approx(0)
    assert decode_s(USUAL, PLAIN, big) == pytest.approx(big / COPY_BYTES_PER_S)
    assert encode_s(USUAL, codec_of("f16"), big, big / 2) == pytest.approx(2 * big / COPY_BYTES_PER_S)
    assert encode_s(USUAL, codec_of("means4"), big, big / 4) == pytest.approx(big / COPY_BYTES_PER_S)
    assert decode_s(USUAL, codec_of("means4"), big) == pytest.approx(big / 4 / COPY_BYTES_PER_S)
    assert decode_s(USUAL, codec_of("i8"), big) == pytest.approx(big / COPY_BYTES_PER_S)

    def coded_s(words: str, width: int) -> float:
        """Return what it takes to code so many bytes of rows that are cut into pieces of `width` values."""
        codec = codec_of(words)
        return encode_s(USUAL, codec, big, big / 4 / width * codec.code_bits * codec.stages / 8)

    assert coded_s("vq4x1024", 8) > 3 * coded_s("vq4x256", 8)
    assert coded_s("vq4x256", 4) > 2 * coded_s("vq4x256", 16), "more scores to choose from"
    assert coded_s("vq4x256x2", 8) == pytest.approx(2 * coded_s("vq4x256", 8), rel=0.1)
    assert coded_s("vq4x16", 2) < coded_s("vq4x64", 2) / 2, "looked up in a grid"


def test_each_message_beyond_the_first_costs_a_board_time() -> None:
    fast = fleet(A, B, C, rtt_s=1e-6, goodput=1e12)
    found = together(fast, (0.4, 0.3, 0.3))
    # scatter and gather have two messages out, the gathers of k and y two in
    assert found.latency_s == pytest.approx(4 * 0.3 + 4 * USUAL.message_s, abs=5e-6)
    assert found.exchange_s == pytest.approx(4 * USUAL.message_s, abs=TINY)


def test_a_board_pays_for_exchanges_by_its_own_costs() -> None:
    fast = fleet(A, B, C, rtt_s=1e-6, goodput=1e12)
    slow = replace(build.COSTS, step_s=0.5, message_s=0.1, byte_s=0.001)
    found = together({**fast, B: replace(fast[B], exchanges=slow)}, (0.4, 0.3, 0.3))
    # b takes in its rows of x (3 rows, 7 numbers of ranges), hands out k, takes in that of two, hands out y
    scattered_s = 0.5 + 0.001 * (3 * ROW + 56)
    gathered_s = (0.6 + 2 * 0.001 * 3 * ROW) + (0.6 + 0.001 * 7 * ROW)
    answered_s = 0.5 + 0.001 * 3 * ROW
    spent_s = scattered_s + gathered_s + answered_s
    assert found.latency_s == pytest.approx(spent_s + 3 * 0.3 + 2 * USUAL.message_s, abs=1e-4)
    assert found.exchange_s == pytest.approx(4 * USUAL.message_s, abs=TINY), "the lead has costs of its own"


def test_a_causal_board_waits_for_those_before_it_only() -> None:
    manifest = build.sharded(causal=True)
    profiles = fleet(A, B, manifest=manifest)
    found = together(profiles, (0.6, 0.4), manifest=manifest)
    # a needs nobody's k; b has its rows after 0.276 s, its k after 0.676 s, a's after 0.6 + 0.192 + 0.1 s
    y_s = 0.6 + 0.292 + 0.8
    assert found.latency_s == pytest.approx(y_s + 0.128 + 0.1, abs=TINY)
    assert found.carried_bytes == 176 + 6 * ROW + 4 * ROW


def test_rows_pay_for_each_token_they_attend_to() -> None:
    links = {each: build.link(1e-6, 1e12) for each in (A, B)}
    profiles = {each: board(TOKENS, links, pair_s=0.01) for each in (A, B)}
    found = together(profiles, (0.5, 0.5))
    assert found.latency_s == pytest.approx(5 * 0.3 + 5 * 10 * 0.01, abs=5e-6)


def test_boards_that_cannot_talk_or_have_no_figures_are_no_plan() -> None:
    lonely = {A: board(TOKENS, {}), B: board(TOKENS, {})}
    with pytest.raises(PlanError, match="no usable link from a to b"):
        together(lonely, (0.5, 0.5))
    unknown = {name: replace(each, laws={}) for name, each in fleet(A, B).items()}
    with pytest.raises(PlanError, match="no timing of a segment"):
        together(unknown, (0.5, 0.5))
    stray = Program(steps=(Exchange(kind="send", tag=9, tensors=("x",), peer=B),))
    told = programs(TOKENS.shardings[0], [A, B], A, (0.5, 0.5))
    mixed = {**told, A: Program(steps=(*told[A].steps, *stray.steps))}
    with pytest.raises(PlanError, match="expected collectives only"):
        predict(TOKENS, fleet(A, B), frozenset(), A, (Lane(programs=mixed, weight=1.0),))


@given(
    paces=st.lists(st.sampled_from([0.1, 0.5, 1.0, 3.0]), min_size=2, max_size=4),
    goodput=st.sampled_from([100.0, 1e3, 1e5]),
    rtt_s=st.sampled_from([1e-3, 0.1]),
    causal=st.booleans(),
    number=st.sampled_from(["f32", "f16", "i8"]),
)
@settings(max_examples=60, deadline=None)
def test_better_links_never_make_a_request_slower(
    paces: list[float], goodput: float, rtt_s: float, causal: bool, number: str
) -> None:
    manifest = build.sharded(causal=causal)
    shares = [1 / len(paces)] * len(paces)

    def found(goodput: float, rtt_s: float) -> Prediction:
        links = {each: build.link(rtt_s, goodput) for each in (A, B, C, D)}
        profiles = {
            name: board(manifest, links, pace) for name, pace in zip((A, B, C, D), paces, strict=False)
        }
        return together(profiles, shares, manifest=manifest, codec=codec_of(number))

    slow = found(goodput, rtt_s)
    assert slow.compute_s + slow.exchange_s <= slow.latency_s * (1 + 1e-9)
    assert slow.throughput_per_s * slow.compute_s <= 1 + 1e-9
    for better in (found(2 * goodput, rtt_s), found(goodput, rtt_s / 2)):
        assert better.latency_s <= slow.latency_s * (1 + 1e-9)
        assert better.throughput_per_s >= slow.throughput_per_s * (1 - 1e-9)
        assert better.carried_bytes == slow.carried_bytes


# --- seconds of a run -----------------------------------------------------------------------------


def test_without_a_law_a_run_takes_as_long_as_its_share_of_rows() -> None:
    timed = replace(build.profile(TOKENS), segments={"q0": build.timing(0.5)})
    assert run_s(TOKENS, timed, Run(segment="q0"), {"batch": 1, ROWS: 4}) == pytest.approx(0.4)
    ruled = replace(timed, laws={"q0": law(0.1, base_s=0.3)})
    assert run_s(TOKENS, ruled, Run(segment="q0"), {"batch": 2, ROWS: 4}) == pytest.approx(1.1)


def test_what_others_gave_is_paid_for_once_for_each_of_a_batch() -> None:
    sizes = {"batch": 2, ROWS: 4, COLUMNS: 10}
    ruled = replace(build.profile(TOKENS), laws={"q1": replace(law(0.1), column_s=0.01)})
    assert run_s(TOKENS, ruled, Run(segment="q1"), sizes) == pytest.approx(8 * 0.1 + 2 * 10 * 0.01)


def test_a_range_of_the_weights_takes_as_long_as_its_operations() -> None:
    """The whole has 1000 operations in 5 s; the segment 100 for 2 of 4 units, so 50 for one."""
    first = TOKENS.shardings[0].segments[0]
    weight = replace(build.blob(1), size_bytes=40)
    sliced = Slice(
        tensor="w", blob=weight, axis=0, outer=1, units=4, unit_bytes=10, sha256s=(build.sha(1),) * 4
    )
    heads = replace(first, units=4, slices=(sliced,), flops=100)
    sharding = replace(TOKENS.shardings[0], segments=(heads, TOKENS.shardings[0].segments[1]))
    manifest = replace(TOKENS, shardings=(sharding,), whole=replace(TOKENS.whole, flops=1000))
    profile = build.profile(manifest, 5.0)
    assert run_s(manifest, profile, Run(segment="q0", part=(1, 2)), {}) == pytest.approx(0.25)
    assert run_s(manifest, profile, Run(segment="q0", part=(0, 4)), {}) == pytest.approx(1.0)
    ruled = replace(profile, laws={"q0": law(0.1, base_s=0.3)})
    assert run_s(manifest, ruled, Run(segment="q0", part=(1, 3)), {"batch": 2}) == pytest.approx(
        0.3 + 4 * 0.1
    )


def test_a_segment_is_held_once_in_however_many_chunks_it_runs() -> None:
    manifest = build.chain((100,))
    once = held_bytes(manifest, [Run(segment="s00")])
    assert once >= 100
    assert held_bytes(manifest, [Run(segment="s00"), Run(segment="s00", chunks=2)]) == once


# --- the network ----------------------------------------------------------------------------------


def wires(links: Mapping[tuple[int, int], LinkProfile], cells: Cells = SWITCHED, count: int = 3) -> Wires:
    boards = (A, B, C)[:count]
    return Wires(boards, lambda u, v: links.get((boards.index(u), boards.index(v))), cells)


ALIKE = {(i, j): build.link(0.2, 100.0) for i in range(3) for j in range(3)}


def send(net: Wires, source: int, targets: Sequence[int], size: float, at_s: float) -> list[float]:
    sizes = np.full(len(targets), size)
    return [float(there_s) for there_s in net.send(source, np.array(targets), sizes, at_s)]


def test_copies_to_several_boards_share_an_uplink() -> None:
    net = wires(ALIKE)
    assert send(net, 0, [1, 2], 100, 0.0) == pytest.approx([2.1, 2.1])
    assert send(net, 0, [1], 100, 1.0) == pytest.approx([3.1]), "behind those two"
    assert send(net, 0, [1], 100, 5.0) == pytest.approx([6.1])


def test_what_comes_from_several_boards_shares_a_downlink() -> None:
    net = wires(ALIKE)
    assert send(net, 0, [2], 100, 0.0) == pytest.approx([1.1])
    assert send(net, 1, [2], 100, 0.5) == pytest.approx([2.1])


def test_a_slow_link_does_not_hold_the_uplink() -> None:
    net = wires({**ALIKE, (0, 2): build.link(0.2, 10.0)})
    assert send(net, 0, [1, 2], 100, 0.0) == pytest.approx([2.1, 10.1])
    assert send(net, 0, [1], 100, 2.0) == pytest.approx([3.1])


def test_boards_of_a_cell_share_the_air() -> None:
    both = frozenset({frozenset({A, B})})
    net = wires(ALIKE, both)
    assert send(net, 0, [1], 100, 0.0) == pytest.approx([1.1])
    assert send(net, 1, [0, 2], 100, 0.0) == pytest.approx([3.1, 3.1])
    assert send(net, 2, [0], 100, 0.0) == pytest.approx([4.1])
    one = frozenset({frozenset({A})})
    net = wires(ALIKE, one)
    assert send(net, 0, [1], 100, 0.0) == pytest.approx([1.1])
    assert send(net, 1, [2], 100, 0.0) == pytest.approx([1.1]), "by cable"


def test_on_the_air_all_wait_for_all() -> None:
    """k of 10 rows goes from each of three boards to two others: on the air one after the other."""
    links = {each: build.link(1e-6, 1000.0) for each in (A, B, C)}
    profiles = {each: board(TOKENS, links, pace=0.5) for each in (A, B, C)}
    air = together(profiles, (0.4, 0.3, 0.3), cells=frozenset({frozenset({A, B, C})}))
    cable = together(profiles, (0.4, 0.3, 0.3))
    assert air.latency_s > cable.latency_s + 0.2
    assert air.throughput_per_s == pytest.approx(1000 / air.carried_bytes)


def test_cells_are_found_by_the_marks_of_links() -> None:
    air, cable = replace(build.link(0.01, 1e6), shared=True), build.link(0.01, 1e6)
    links = {A: {B: air, D: cable}, B: {C: air, D: cable}, C: {E: air}, D: {A: cable}}
    profiles = {name: board(TOKENS, each) for name, each in links.items()}
    assert cells_of(profiles) == {frozenset({A, B, C})}
    assert cells_of({A: profiles[A], D: profiles[D]}) == frozenset()


def test_the_busiest_part_of_a_network() -> None:
    boards = (A, B, C)

    def path(u: BoardId, v: BoardId) -> LinkProfile | None:
        return ALIKE.get((boards.index(u), boards.index(v)))

    carried = [(A, B, 100.0), (A, C, 100.0), (C, B, 150.0)]
    assert busiest_s(carried, path) == pytest.approx(2.5)  # into b
    assert busiest_s(carried, path, frozenset({frozenset({A, C})})) == pytest.approx(3.5)
    assert busiest_s((), path) == 0


def test_what_the_lead_copies_to_its_device_and_back_is_told_as_a_part_of_its_compute() -> None:
    """Of 6 of 10 tokens: x and k of q0, and all of k and y of q1; h stays on the device between them."""
    profiles = fleet(A, B)
    plain = together(profiles, (0.6, 0.4))
    assert plain.staging_s == 0.0
    staged = together({**profiles, A: replace(profiles[A], staging_s=1e-4)}, (0.6, 0.4))
    assert staged.staging_s == pytest.approx(1e-4 * ROW * (6 + 6 + 10 + 6))
    assert staged.compute_s == pytest.approx(plain.compute_s + staged.staging_s)
    assert plain.latency_s < staged.latency_s <= plain.latency_s + staged.staging_s


def test_what_another_board_copies_to_its_device_is_waited_for() -> None:
    """Before the lead has b's k: x in and k out, of 4 tokens, and 0.4 s of q0; then 1.2 s of its own q1."""
    profiles = fleet(A, B)
    slow = together({**profiles, B: replace(profiles[B], staging_s=0.5 / ROW)}, (0.6, 0.4))
    assert slow.staging_s == 0.0
    assert slow.latency_s > 0.5 * (4 + 4) + 0.4 + 1.2
    assert together(profiles, (0.6, 0.4)).latency_s < 4.0


def test_staging_of_a_model_is_of_what_comes_in_and_goes_out() -> None:
    """In one piece or in two: what one hands the other stays on the device."""
    manifest = build.chain((100, 100), asked=300, given=50)
    profile = replace(build.profile(manifest, 1.0), staging_s=1e-3)
    lanes = (Lane(programs={A: Program(steps=(Run(segment="whole"),))}, weight=1.0),)
    assert predict(manifest, {A: profile}, frozenset(), A, lanes).staging_s == pytest.approx(0.35)
    apart = (Lane(programs={A: Program(steps=(Run(segment="s00"), Run(segment="s01")))}, weight=1.0),)
    besides = replace(manifest, outputs=(*manifest.outputs, *manifest.by_name["s00"].outputs))
    assert predict(besides, {A: profile}, frozenset(), A, apart).staging_s == pytest.approx(0.45)
    assert predict(manifest, {A: profile}, frozenset(), A, apart).staging_s == pytest.approx(0.35)
