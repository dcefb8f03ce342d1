"""The segments of shardings are timed at rows and units, and get laws that a planner can use."""

import contextlib
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from shoal.encoding import from_json, to_json
from shoal.errors import BoardError
from shoal.exporter.export import export
from shoal.manifest import COLUMNS, ROWS, WHOLE, Manifest, Segment
from shoal.profiler import segments
from shoal.profiler.counts import counts, first, samples
from shoal.profiler.opening import opener
from shoal.program import RANGE
from shoal.records import Profile
from shoal.session import Session
from tests import build
from tests.models import tiny_transformer

TOKENS = 33
ALONE: contextlib.AbstractContextManager[object] = contextlib.nullcontext()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("shared")
    onnx.save(tiny_transformer(layers=2, hidden=32, heads=8, tokens=TOKENS), folder / "m.onnx")
    return folder / "bundle", export(folder / "m.onnx", folder / "bundle")


def of(manifest: Manifest, strategy: str) -> list[Segment]:
    return [s for sharding in manifest.shardings if sharding.strategy == strategy for s in sharding.segments]


def test_units_are_timed_at_parts_that_together_are_less_than_the_whole(
    bundle: tuple[Path, Manifest],
) -> None:
    shared = [s for s in of(bundle[1], "tensor") if s.units == 8]
    assert shared
    found = [(c.part, c.rows, c.batch) for c in counts(bundle[1], shared[0])]
    assert found == [((0, 1), 1, 1), ((0, 2), 2, 1), ((0, 4), 4, 1), ((0, 2), 4, 2), ((0, 2), 8, 4)]


def test_even_a_few_units_get_a_first_law(bundle: tuple[Path, Manifest]) -> None:
    """An eighth and a quarter of four heads are one head: that alone would tell nothing."""
    shared = next(s for s in of(bundle[1], "tensor") if s.units == 8)
    few = replace(shared, units=4)
    assert [c.part for c in first(counts(bundle[1], few))] == [(0, 1), (0, 2)]


def test_rows_that_a_segment_takes_and_does_not_hand_on_can_be_chosen_too(
    bundle: tuple[Path, Manifest],
) -> None:
    """The last one averages over them: nothing that it makes has as many."""
    last = next(s for s in of(bundle[1], "sequence") if RANGE in {spec.name for spec in s.inputs})
    found = {(c.rows, c.attended) for c in counts(bundle[1], last) if c.batch == 1}
    assert {(2, TOKENS), (17, TOKENS), (34, TOKENS), (2, 4)} <= found
    sampled = counts(bundle[1], last)[1]
    rows, gathered = sampled.sizes[ROWS], sampled.sizes[COLUMNS]
    assert samples(last, sampled.sizes)[RANGE].tolist() == [gathered - rows, gathered, gathered]


def test_the_first_look_gives_laws_of_all_that_can_be_divided(bundle: tuple[Path, Manifest]) -> None:
    *_, found = segments.measure(bundle[1], opener(bundle[0], threads=1), ALONE)
    assert WHOLE in found.timings
    for segment in of(bundle[1], "sequence"):
        assert segment.name in found.timings
        if len(first(counts(bundle[1], segment))) > 1:
            assert found.laws[segment.name].seconds(16, TOKENS) > 0
    held = [s for s in of(bundle[1], "tensor") if s.units]
    assert held
    for segment in held:
        assert segment.name not in found.timings, "nobody has timed it whole"
        assert found.laws[segment.name].seconds(segment.units, 1) > 0


def test_a_closer_look_knows_units_and_batches(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    *_, known = segments.measure(manifest, opener(folder, threads=1), ALONE)
    order = []
    for found in segments.refine(
        manifest,
        opener(folder, threads=1),
        ALONE,
        known.timings,
        known.timings.keys() | known.laws.keys(),
        go_on=lambda: True,
        room_bytes=1 << 30,
        budget_s=3.0,
    ):
        order.append(found.segments[0])
        shared = manifest.by_name[found.segments[0]]
        if shared.units:
            assert found.timing is None
            assert found.law is not None
            assert found.law.points == len(counts(manifest, shared))
    divided = {s.name for sharding in manifest.shardings for s in sharding.segments}
    assert [name in divided for name in order] == sorted((name in divided for name in order), reverse=True)


def test_a_part_for_which_there_is_no_memory_is_left_out(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    opened = opener(folder, threads=1)

    def small(segment: Segment, part: tuple[int, ...]) -> Session:
        if segment.units:
            raise BoardError("no room")
        return opened(segment, part)

    *_, found = segments.measure(manifest, small, ALONE)
    assert WHOLE in found.timings
    assert not {s.name for s in of(manifest, "tensor") if s.units} & found.laws.keys()


def test_laws_of_units_reach_the_coordinator(bundle: tuple[Path, Manifest]) -> None:
    *_, found = segments.measure(bundle[1], opener(bundle[0], threads=1), ALONE)
    told = replace(build.profile(bundle[1]), segments=found.timings, laws=found.laws)
    assert from_json(Profile, to_json(told), "profile") == told


def test_what_a_bundle_is_opened_from_is_left_as_it_was(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    before = sorted(folder.rglob("*"))
    segment = next(s for s in of(manifest, "tensor") if s.units)
    session = opener(folder, threads=1)(segment, (1, 3))
    assert session.run(samples(segment, manifest.sizes)).keys() == {spec.name for spec in segment.outputs}
    assert sorted(folder.rglob("*")) == before
