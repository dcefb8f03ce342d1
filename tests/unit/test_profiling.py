"""A board gets to know a bundle: as it was given first, then in what else is wished for."""

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import cast

import pytest

from shoal.agent.fetch import Fetcher
from shoal.agent.measure import Measurer
from shoal.agent.profiling import Profiling, quick
from shoal.agent.reconcile import Reconciler
from shoal.agent.room import Room
from shoal.errors import BoardError
from shoal.firmware_configs import boards
from shoal.manifest import Manifest, Precision, Swap, Variant
from shoal.messages import BundleSource, Desired
from shoal.records import Blob, Sha256
from tests import build

GIVEN = build.chain((100, 100))


def variant(precision: Precision) -> Variant:
    alike = {
        segment.name: Swap(model=build.blob(600 + number), weights=(build.blob(700 + number, 25),), slices=())
        for number, segment in enumerate(GIVEN.given)
    }
    return Variant(precision=precision, segments=alike, left_out={}, deviations=(), lost=None)


MODEL = replace(GIVEN, variants=(variant("int8"),))


class Agent:
    """All that is told what to do, and what it was told."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.kept: Collection[str] = ()
        self.fetched: set[Blob] = set()
        self.given = False
        self.lacking = True
        self.away = False
        self.room_for = 1000
        self.said: list[str] = []
        self.profiling = Profiling(
            cast(Reconciler, self),
            cast(Fetcher, self),
            cast(Room, self),
            cast(Measurer, self),
            {"int8"},
            lambda: self.said.append(self.profiling.activity),
        )

    # as Reconciler, Measurer, Room and Fetcher

    async def manifest(self, _source: BundleSource) -> Manifest:
        return MODEL

    async def fetch_all(self, _source: BundleSource, _manifest: Manifest) -> None:
        self.done.append("fetch")

    def profiled(self, _bundle: Sha256) -> bool:
        return self.given

    def measure(self, _bundle: Sha256, _manifest: Manifest) -> None:
        self.done.append("measure")
        self.given = True

    def lacks(self, _manifest: Manifest, _precision: Precision) -> bool:
        return self.lacking

    def measure_in(self, _bundle: Sha256, _manifest: Manifest, precision: Precision) -> None:
        self.done.append(f"measure {precision}")
        self.lacking = False

    def fits(self, blobs: Iterable[Blob]) -> bool:
        return sum(blob.size_bytes for blob in set(blobs)) <= self.room_for

    async def fetch(self, _url: str, blobs: Iterable[Blob], keep: Collection[str], *, gently: bool) -> None:
        assert gently
        if self.away:
            raise BoardError("no answer")
        self.fetched, self.kept = set(blobs), keep

    def hear(self, *wishes: tuple[Precision, ...]) -> None:
        async def work() -> None:
            task = asyncio.ensure_future(self.profiling.run())
            for precisions in wishes:
                self.profiling.wish(desired(precisions))
                while self.profiling._news.is_set() or self.profiling.activity:
                    await asyncio.sleep(0.001)
            task.cancel()

        asyncio.run(work())


def desired(precisions: tuple[Precision, ...]) -> Desired:
    return Desired(
        coordinator=1,
        version=1,
        bundle=build.source(),
        peers={},
        plans=(),
        committed=0,
        proving=0,
        ahead=(),
        precisions=precisions,
    )


def test_the_bundle_is_known_as_given_before_it_is_in_anything_else() -> None:
    agent = Agent()
    agent.hear((), ("int8",), ("int8",))
    assert agent.done == ["fetch", "measure", "measure int8"]
    assert agent.fetched == set(MODEL.blobs_in("int8"))
    assert agent.kept == MODEL.blobs.keys()
    assert agent.profiling.activity == ""
    assert "profiling model in int8" in agent.said


def test_what_this_board_is_not_for_is_not_fetched() -> None:
    agent = Agent()
    agent.hear(("fp16",))
    assert agent.done == ["fetch", "measure"]
    assert not agent.fetched


def test_a_board_is_of_use_without() -> None:
    agent = Agent()
    agent.away = True
    agent.hear(("int8",))
    assert agent.done == ["fetch", "measure"]
    assert agent.profiling.activity == ""


def test_where_the_disk_has_no_room_for_all_some_are_timed() -> None:
    agent = Agent()
    given = sum(blob.size_bytes for blob in MODEL.blobs.values())
    agent.room_for = given + 125 + 25
    agent.hear(("int8",))
    assert len(agent.fetched) == 2, "a file and its weights"
    assert agent.done[-1] == "measure int8"


@pytest.mark.parametrize(("kind", "able"), [("raspberry-pi-4", set()), ("raspberry-pi-5", {"int8"})])
def test_boards_without_fast_products_of_bytes_do_not_time_them(kind: str, able: set[str]) -> None:
    assert quick(boards.load(kind).runtime) == able
