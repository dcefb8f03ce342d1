"""The law of a segment is found again from readings of it, and holds at counts that were not read."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.manifest import Manifest, Segment
from shoal.profiler import segments
from shoal.profiler.counts import counts, samples
from shoal.profiler.fit import Point, fit, known_within, settled
from shoal.records import Array, TensorSpec
from shoal.session import Session, open_session
from tests import build
from tests.models import Builder

READ = [(rows, 197) for rows in (25, 49, 98, 197)] + [(rows, rows) for rows in (25, 49, 98)]
NOT_READ = [(rows, 197) for rows in (30, 60, 75, 120, 150, 180)] + [(40, 40), (80, 80), (60, 120)]


def points(base_s: float, row_s: float, pair_s: float) -> list[Point]:
    return [Point(rows=n, attended=m, seconds=base_s + row_s * n + pair_s * n * m) for n, m in READ]


def test_a_law_without_noise_is_found_exactly() -> None:
    """Of about a ViT-B layer on one core: 1.5 ms, 127 us a row, 54 ns a pair."""
    law = fit(points(1.5e-3, 127e-6, 54e-9))
    assert (law.base_s, law.row_s, law.pair_s) == pytest.approx((1.5e-3, 127e-6, 54e-9), rel=1e-6)
    assert law.residual < 1e-9
    assert law.points == len(READ)


@settings(deadline=None)
@given(
    st.floats(1e-5, 1e-2),
    st.floats(1e-7, 1e-3),
    st.floats(0, 1e-6),
    st.lists(st.floats(0.97, 1.03), min_size=len(READ), max_size=len(READ)),
)
def test_what_was_not_read_is_predicted_within_a_tenth(
    base_s: float, row_s: float, pair_s: float, noise: list[float]
) -> None:
    read = points(base_s, row_s, pair_s)
    law = fit([replace(p, seconds=p.seconds * factor) for p, factor in zip(read, noise, strict=True)])
    for n, m in NOT_READ:
        true_s = base_s + row_s * n + pair_s * n * m
        assert law.seconds(n, m) == pytest.approx(true_s, rel=0.1)


@given(
    st.lists(
        st.tuples(st.integers(1, 2000), st.integers(1, 2000), st.floats(1e-6, 10.0)), min_size=1, max_size=12
    )
)
def test_no_term_is_ever_negative(rows: list[tuple[int, int, float]]) -> None:
    law = fit([Point(rows=n, attended=m, seconds=s) for n, m, s in rows])
    assert min(law.base_s, law.row_s, law.pair_s, law.column_s) >= 0
    assert law.seconds(500, 500) >= law.seconds(100, 100)


def test_work_on_all_that_is_attended_to_is_a_term_of_its_own() -> None:
    """Keys and values of all tokens made here: 21 us a token, whatever the rows."""
    law = fit([replace(p, seconds=p.seconds + 21e-6 * p.attended) for p in points(1e-3, 127e-6, 54e-9)])
    assert law.column_s == pytest.approx(21e-6, rel=1e-6)
    assert law.seconds(30, 197) == pytest.approx(1e-3 + 127e-6 * 30 + 54e-9 * 30 * 197 + 21e-6 * 197)


def test_a_batch_multiplies_rows_and_what_is_attended_to_but_no_fixed_cost() -> None:
    """Keys and values are made of the tokens of each item of a batch."""

    def seconds(tokens: int, attended: int, batch: int) -> float:
        return 1e-3 + batch * (127e-6 * tokens + 54e-9 * tokens * attended + 21e-6 * attended)

    read = [(tokens, attended, 1) for tokens, attended in READ] + [(98, 197, 2), (98, 197, 4)]
    law = fit([Point(rows=n * k, attended=m, batch=k, seconds=seconds(n, m, k)) for n, m, k in read])
    for n, m, k in ((60, 197, 3), (25, 80, 8), (180, 197, 1)):
        assert law.seconds(n * k, m, k) == pytest.approx(seconds(n, m, k), rel=1e-6)


def test_of_units_the_law_tells_what_is_shared_out_from_what_is_not() -> None:
    """Of a batch: 1 ms once, 2 ms that each board does whole, 0.5 ms for each unit."""
    read = [(units, batch) for units in (2, 3, 6) for batch in (1, 2)]
    law = fit(
        [Point(rows=u * k, attended=1, batch=k, seconds=1e-3 + 2e-3 * k + 5e-4 * u * k) for u, k in read]
    )
    assert law.seconds(9 * 4, 1, 4) == pytest.approx(1e-3 + 8e-3 + 18e-3)


def test_what_cannot_be_told_apart_is_one_term() -> None:
    """With one number of tokens, a cost for each pair is a cost for each row."""
    law = fit([Point(rows=n, attended=197, seconds=1e-3 + 1e-5 * n) for n in (1, 2, 4)])
    assert law.pair_s == 0.0
    assert law.row_s == pytest.approx(1e-5)
    assert fit([Point(rows=5, attended=5, seconds=0.2)]).seconds(5, 5) == pytest.approx(0.2)


def test_no_points_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        fit([])


def test_readings_from_before_the_board_was_left_in_peace_do_not_count() -> None:
    assert settled([3.0, 2.9, 3.1, 1.0, 1.01, 0.99]) == [1.0, 1.01, 0.99]
    assert settled([1.0, 1.0, 1.1, 1.0]) == [1.0, 1.0, 1.1, 1.0]
    assert settled([5.0, 1.0]) == [5.0, 1.0]


def test_how_well_a_middle_is_known_by_the_rule_for_normal_readings() -> None:
    """With 400 readings of N(1, 0.1) the median is known within 1.96 x 1.253 x 0.1 / 20 = 1.2 %."""
    readings = list(np.random.default_rng(3).normal(1.0, 0.1, 400))
    assert known_within(readings) == pytest.approx(0.0123, rel=0.2)


# --- on segments whose counts can be chosen ---------------------------------------------------

HIDDEN = 64


def divisible(folder: Path) -> tuple[Manifest, Segment, Path]:
    """Return a segment that computes rows of its own and attends to rows of all boards, and its file."""
    b = Builder()
    x = b.input("x", ["batch", "local", HIDDEN])
    keys, values = (b.input(name, ["batch", "gathered", HIDDEN]) for name in ("keys", "values"))
    scores = b.node("MatMul", b.linear(x, HIDDEN, HIDDEN), b.node("Transpose", keys, perm=[0, 2, 1]))
    mixed = b.node("MatMul", b.node("Softmax", scores, axis=-1), values)
    b.node("Add", x, b.feed_forward(mixed, HIDDEN), output="y")
    file = folder / "part.onnx"
    file.write_bytes(b.model({"y": ["batch", "local", HIDDEN]}).SerializeToString())

    def spec(name: str, tokens: str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("batch", tokens, HIDDEN))

    inputs = (spec("x", "local"), spec("keys", "gathered"), spec("values", "gathered"))
    chain = build.chain((100,))
    segment = replace(chain.segments[0], inputs=inputs, outputs=(spec("y", "local"),), kind="layer")
    manifest = replace(
        chain,
        segments=(segment, replace(segment, name="s01")),
        cuts=(replace(build.chain((1, 1)).cuts[0], tensors=()),),
        inputs=inputs,
        outputs=segment.outputs,
        batch="batch",
        sample_sizes={"batch": 1, "local": 64, "gathered": 64},
    )
    return manifest, segment, file


def test_counts_of_a_segment_that_attends_to_the_rows_of_others(tmp_path: Path) -> None:
    manifest, segment, _ = divisible(tmp_path)
    found = [(c.rows, c.attended) for c in counts(manifest, segment)]
    assert found[0] == (64, 64), "the sample's"
    assert set(found) == {
        *((n, 64) for n in (8, 16, 32, 64)),
        *((n, n) for n in (8, 16, 32)),
        (128, 64),
        (256, 64),
    }


def test_counts_of_a_segment_whose_rows_attend_to_one_another() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, "tokens", 8))
    chain = build.chain((100,))
    segment = replace(chain.segments[0], inputs=(spec,), outputs=(replace(spec, name="y"),))
    manifest = replace(chain, segments=(segment,), sample_sizes={"tokens": 128})
    found = [(c.rows, c.attended) for c in counts(manifest, segment)]
    assert found == [(128, 128), (16, 16), (32, 32), (64, 64)]


def test_a_segment_of_fixed_counts_is_timed_at_these() -> None:
    chain = build.chain((100,))
    found = counts(chain, chain.segments[0])
    assert [(c.rows, c.attended) for c in found] == [(1, 1)]


def closer(
    manifest: Manifest, session: Session, *, room_bytes: int = 1 << 30, runs: int = 1000
) -> list[segments.Closer]:
    left = [runs]

    def go_on() -> bool:
        left[0] -= 1
        return left[0] >= 0

    return list(
        segments.refine(
            manifest,
            lambda _segment, _part: session,
            contextlib.nullcontext(),
            {s.name: build.timing(1e-3) for s in manifest.segments},
            {s.name for s in manifest.segments},
            go_on=go_on,
            room_bytes=room_bytes,
            budget_s=2.0,
        )
    )


def test_a_real_segment_is_timed_at_its_counts_and_its_law_fits(tmp_path: Path) -> None:
    manifest, segment, file = divisible(tmp_path)
    session = open_session(file)
    [found] = closer(manifest, session)
    assert found.segments == ("s00", "s01"), "one look for all of a kind"
    assert found.law is not None
    assert found.timing is not None
    assert found.law.points == 9
    sizes = {"batch": 1, "local": 48, "gathered": 56}
    tensors = samples(segment, sizes)
    measured_s = segments.time_runs(session, tensors, contextlib.nullcontext(), runs=50).median_s
    assert measured_s / 3 < found.law.seconds(48, 56) < 3 * measured_s


def test_counts_that_need_more_memory_than_there_is_are_left_out(tmp_path: Path) -> None:
    manifest, segment, file = divisible(tmp_path)
    heavy = replace(segment, work_bytes=1000)
    manifest = replace(manifest, segments=(heavy, replace(heavy, name="s01")))
    [found] = closer(manifest, open_session(file), room_bytes=segment.weight_bytes + 2000)
    assert found.law is not None
    assert found.law.points == 8, "all but the batch of four"


def test_a_board_that_is_wanted_stops_looking(tmp_path: Path) -> None:
    manifest, _, file = divisible(tmp_path)
    assert closer(manifest, open_session(file), runs=0) == []


class Counted(Session):
    """A session that counts its runs."""

    def __init__(self, session: Session) -> None:
        self.inner, self.runs = session, 0
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self.runs += 1
        return self.inner.run(inputs, outputs)


@pytest.mark.parametrize(
    ("asked", "runs", "looks"),
    [(5, 4, 0), (1 + 9 + 3, 12, 0), (1 + 9 + 9 + 3, 21, 1)],
    ids=["while it warms up", "in the first round", "later"],
)
def test_what_comes_while_a_board_looks_waits_for_one_run_at_most(
    tmp_path: Path, asked: int, runs: int, looks: int
) -> None:
    """It asks whether to go on before it begins, and before each run of nine counts."""
    manifest, _, file = divisible(tmp_path)
    session = Counted(open_session(file))
    assert len(closer(manifest, session, runs=asked)) == looks
    assert session.runs == runs
