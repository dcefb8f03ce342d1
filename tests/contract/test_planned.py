"""What the planner proposes for a bundle that was really exported, real boards run."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from shoal.agent.proof import DOUBT
from shoal.coordinator import planner
from shoal.coordinator.grades import grades
from shoal.coordinator.planner import Candidate
from shoal.coordinator.question import Question
from shoal.exporter.export import export
from shoal.exporter.verify import compare
from shoal.frames import ALIGNED, Kind
from shoal.manifest import Manifest
from shoal.program import serving
from shoal.records import BoardId, Profile, Source, Timing
from shoal.session import open_session
from shoal.store import Store
from tests import build
from tests.asking import propose
from tests.connections import Counted, Sent
from tests.contract.conftest import TOKENS
from tests.contract.test_shardings import Cluster, question

NAMES = [BoardId(name) for name in ("a", "b", "c")]


def profiles(manifest: Manifest) -> dict[BoardId, Profile]:
    """Return three boards so slow, on links so fast, that sharing any request pays."""
    links = {each: build.link(1e-6, 1e12) for each in NAMES}
    segments = {
        name: Timing(median_s=10.0 * max(1, segment.flops) / manifest.whole.flops, spread_s=0.0, runs=3)
        for name, segment in manifest.by_name.items()
        if not segment.units
    }
    return {
        name: Profile(
            incarnation=1,
            bundle=build.BUNDLE,
            segments={each: replace(t, median_s=t.median_s * pace) for each, t in segments.items()},
            laws={},
            links={peer: link for peer, link in links.items() if peer != name},
            memory_bytes=1 << 30,
            slowdown=1.0,
            staging_s=0.0,
            exchanges=build.COSTS,
            source=Source.ESTIMATED,
        )
        for name, pace in zip(NAMES, (1.0, 1.5, 3.0), strict=True)
    }


@pytest.mark.parametrize("strategy", ["sequence", "sequence-hidden", "tensor"])
def test_what_is_proposed_is_run(strategy: str, bundle: tuple[Path, Path, Manifest], tmp_path: Path) -> None:
    model, depot, manifest = bundle
    found = propose(manifest, profiles(manifest), frozenset(), "latency")
    chosen = next(candidate for candidate in found if candidate.strategy == strategy)
    assert len(chosen.boards) > 1
    (lane,) = serving(chosen.lanes, {"tokens": TOKENS})
    told = dict(chosen.lanes[lane].programs)
    sent: list[Sent] = []
    told = {chosen.lead: told.pop(chosen.lead), **told}
    cluster = Cluster(tmp_path, depot, manifest, told, lambda board: partial(Counted, sent, board))
    original = open_session(model)
    for batch in (2, manifest.sample_sizes["batch"]):
        sent.clear()
        asked = question(batch, TOKENS, 5)
        got = cluster.ask(asked, original.outputs)
        for name, array in original.run(asked).items():
            assert np.allclose(got[name], array, atol=1e-5)
    assert cluster.settled()
    cluster.stop()
    crossed = [each.header for each in sent if each.header.kind is Kind.TENSORS]
    filled_bytes = sum(each.length for each in crossed) - chosen.predicted.carried_bytes
    assert 0 <= filled_bytes <= sum((ALIGNED - 1) * each.count for each in crossed)


def best(manifest: Manifest, change: Callable[[Profile], Profile]) -> Candidate:
    boards = {name: change(profile) for name, profile in profiles(manifest).items()}
    return propose(manifest, boards, frozenset(), "latency")[0]


def test_a_request_with_fewer_tokens_than_boards_has_a_lane(bundle: tuple[Path, Path, Manifest]) -> None:
    _, _, manifest = bundle
    chosen = best(manifest, lambda profile: profile)
    assert (chosen.strategy, len(chosen.boards)) == ("sequence", 3)
    (lane,) = serving(chosen.lanes, {"tokens": 2})
    assert len(chosen.lanes[lane].programs) == 1


def test_slow_links_leave_a_request_on_one_board(bundle: tuple[Path, Path, Manifest]) -> None:
    _, _, manifest = bundle

    def slow(profile: Profile) -> Profile:
        return replace(profile, links=dict.fromkeys(profile.links, build.link(3.0, 1e5)))

    assert best(manifest, slow).strategy == "local"


@pytest.fixture(scope="module")
def precise(
    bundle: tuple[Path, Path, Manifest], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    """Return the store that serves the bundle in all precisions, and its manifest."""
    folder = tmp_path_factory.mktemp("precise")
    manifest = export(bundle[0], folder / "bundle", sizes={"tokens": TOKENS}, precisions=["fp16", "int8"])
    store = Store(folder / "depot")
    for path in (*(folder / "bundle").glob("*.onnx"), *(folder / "bundle" / "blobs").iterdir()):
        store.put(path.read_bytes())
    return folder / "depot", manifest


@pytest.mark.parametrize(
    "strategy",
    ["local in int8", "pipeline in int8", "sequence in int8", "sequence in fp16", "tensor in fp16"],
)
def test_what_is_proposed_in_another_precision_is_run_in_that(
    strategy: str, bundle: tuple[Path, Path, Manifest], precise: tuple[Path, Manifest], tmp_path: Path
) -> None:
    depot, manifest = precise
    asked = Question(
        manifest=manifest,
        profiles=profiles(manifest),
        barred=frozenset(),
        objective="latency",
        max_boards=0,
        grades=grades(manifest, 1.0, 0.0),
    )
    chosen = next(candidate for candidate in planner.propose(asked) if candidate.strategy == strategy)
    (lane,) = serving(chosen.lanes, {"tokens": TOKENS})
    told = dict(chosen.lanes[lane].programs)
    ran = {name for program in told.values() for name in program.segments}
    assert not ran.isdisjoint(manifest.swaps)
    cluster = Cluster(tmp_path, depot, manifest, {chosen.lead: told.pop(chosen.lead), **told})
    original = open_session(bundle[0])
    inputs = question(1, TOKENS, 5)
    got = cluster.ask(inputs, original.outputs)
    cluster.stop()
    for name, want in original.run(inputs).items():
        found = compare(name, want, got[name])
        assert 0 < found.max_rel_err < DOUBT * chosen.error
