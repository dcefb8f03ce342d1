"""A board on its way to what is desired of it, with everything around it replaced by what records it."""

import asyncio
import time
from collections.abc import Callable, Collection, Container, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from shoal.agent import executor
from shoal.agent.dispatch import Dispatcher
from shoal.agent.executor import Executor
from shoal.agent.fetch import Fetcher
from shoal.agent.inbox import Inbox
from shoal.agent.peers import Peers
from shoal.agent.reconcile import Reconciler
from shoal.agent.room import FullError, Room
from shoal.agent.sessions import Sessions
from shoal.book import Book, book_of
from shoal.codec import codec_of
from shoal.encoding import to_json
from shoal.errors import BoardError
from shoal.golden import Golden, pack
from shoal.manifest import WHOLE, Manifest, Segment
from shoal.measured import Codebook
from shoal.messages import Desired
from shoal.parts import Piece
from shoal.program import Lane, Plan, Run
from shoal.records import Address, Array, Blob, BoardId, Sha256
from shoal.session import Session
from shoal.sharding import programs
from shoal.store import Store
from tests import build
from tests.build import A, B

_BOOK = book_of(codec_of("vq2x4"), np.zeros((1, 2, 4, 4), np.float32))


class Boards:
    """What the reconciler was told to do, and what stands in its way."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.manifest = build.chain()
        self.bundle = self.store.put(to_json(self.manifest)).sha256
        self.away = False
        self.opened: list[str] = []
        self.kept: list[str] = []
        self.books: list[str] = []
        self.books_kept: Container[Sha256] = ()
        self.known: Mapping[BoardId, Address] = {}
        self.room = True
        self.fetched: list[str] = []
        self.full: set[Sha256] = set()
        """Blobs for which there is no room."""
        self.executor = Executor(A, lambda *_run: None, lambda *_failure: None)
        self.executor.connect(cast(Peers, self))
        self.dispatcher = Dispatcher(A, self.executor, self.no_resort)
        self.reconciler = Reconciler(
            A,
            self.store,
            cast(Fetcher, self),
            cast(Sessions, self),
            self.executor,
            cast(Peers, self),
            self.dispatcher,
            Room(self.store, None),
            lambda: None,
        )

    async def no_resort(self, _manifest: Manifest, _inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise BoardError("no")

    # as Fetcher
    async def fetch(
        self, _url: str, blobs: Iterable[Blob], _keep: Collection[str] = (), *, gently: bool = False
    ) -> None:
        if self.away:
            raise BoardError("coordinator: no answer")
        if self.full & {blob.sha256 for blob in blobs}:
            raise FullError("disk full")
        self.fetched += [f"{'gently ' if gently else ''}{blob.sha256}" for blob in blobs]

    async def fetch_manifest(self, url: str, _sha256: Sha256) -> None:
        await self.fetch(url, ())

    async def fetch_pieces(
        self, url: str, _pieces: Iterable[Piece], _keep: Collection[str] = (), *, gently: bool = False
    ) -> None:
        await self.fetch(url, (), gently=gently)

    # as Sessions
    def open(self, wanted: Mapping[Run, Segment]) -> dict[Run, Session]:
        if not self.room:
            raise BoardError("does not fit")
        self.opened += [segment.name for segment in wanted.values()]
        return {run: Quick() for run in wanted}

    def keep(self, wanted: Iterable[tuple[Segment, Run]]) -> None:
        self.kept = [segment.name for segment, _ in wanted]

    def open_books(self, records: Mapping[Sha256, Codebook]) -> dict[Sha256, Book]:
        self.books = [record.tensor for record in records.values()]
        return dict.fromkeys(records, _BOOK)

    def keep_books(self, digests: Container[Sha256]) -> None:
        self.books_kept = digests

    # as Peers
    on_notes: object = None

    def send(self, _peer: BoardId, _buffers: object) -> None:
        raise AssertionError("a board alone sends nothing")

    def know(self, addresses: Mapping[BoardId, Address]) -> None:
        self.known = addresses

    def plan(self, epoch: int, *boards: BoardId, lead: BoardId = A) -> Plan:
        return replace(build.plan(epoch, lead, *boards), bundle=self.bundle)

    def desired(
        self, *plans: Plan, committed: int = 0, proving: int = 0, ahead: tuple[Run | Blob, ...] = ()
    ) -> Desired:
        return Desired(
            coordinator=1,
            version=1,
            bundle=build.source(manifest=self.bundle),
            peers={},
            plans=plans,
            committed=committed,
            proving=proving,
            ahead=ahead,
            precisions=(),
        )

    def phases(self) -> dict[int, str]:
        return {readiness.epoch: readiness.phase for readiness in self.reconciler.epochs}


class Quick(Session):
    """A session of the whole model that answers as told."""

    answer: float = 1.0

    def __init__(self) -> None:
        self.inputs, self.outputs = ("x",), ("y",)

    def run(self, _inputs: Mapping[str, Array], _outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return {"y": np.full(3, self.answer, np.float32)}


@pytest.fixture
def boards(tmp_path: Path) -> Boards:
    return Boards(tmp_path)


def run(work: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(work())


def test_a_plan_is_prepared_then_served_then_dropped(boards: Boards) -> None:
    async def work() -> None:
        await boards.reconciler.act(boards.desired(boards.plan(1)))
        assert boards.phases() == {1: "ready"}
        assert boards.dispatcher.plan is None, "nothing is committed yet"
        await boards.reconciler.act(boards.desired(boards.plan(1), committed=1))
        assert boards.opened == ["whole"]
        assert boards.dispatcher.plan == boards.plan(1)
        await boards.reconciler.act(boards.desired())
        assert boards.phases() == {}
        assert boards.kept == []
        assert boards.dispatcher.plan is None

    run(work)


def test_an_epoch_that_is_wanted_again_before_it_was_dropped_takes_requests_again(boards: Boards) -> None:
    """Requests were still under way when it was put down, and then the coordinator changed its mind."""

    async def work() -> None:
        one = boards.desired(boards.plan(1), committed=1)
        await boards.reconciler.act(one)
        held = boards.executor._enter(1)
        dropping = asyncio.ensure_future(boards.reconciler.act(boards.desired()))
        await asyncio.sleep(0.05)
        with pytest.raises(BoardError, match="not ready for epoch 1"):
            boards.executor._enter(1)
        dropping.cancel()
        await asyncio.gather(dropping, return_exceptions=True)
        await boards.reconciler.act(one)
        assert boards.phases() == {1: "ready"}
        boards.executor._leave(boards.executor._enter(1))
        boards.executor._leave(held)

    run(work)


def test_what_a_lost_board_has_part_in_is_broken_off_at_once(boards: Boards) -> None:
    """Nobody answers it, and memory is needed for the plan that will."""

    async def work() -> None:
        plan, peers = boards.plan(1, B), {B: build.address_of(B)}
        await boards.reconciler.act(replace(boards.desired(plan), peers=peers))
        held, inbox = boards.executor._enter(1), Inbox(frozenset({B}), frozenset({(0, B, 0)}))
        held.inboxes.add(inbox)
        dropping = asyncio.ensure_future(boards.reconciler.act(replace(boards.desired(), peers=peers)))
        with pytest.raises(BoardError, match="nothing came from b"):
            await asyncio.to_thread(inbox.take, [(0, B, 0)], time.monotonic() + 0.1)
        dropping.cancel()
        await asyncio.gather(dropping, return_exceptions=True)
        dropping = asyncio.ensure_future(boards.reconciler.act(boards.desired()))
        with pytest.raises(BoardError, match="epoch 1 is over"):
            await asyncio.to_thread(inbox.take, [(0, B, 0)], time.monotonic() + 3.0)
        boards.executor._leave(held)
        await dropping
        assert boards.phases() == {}

    run(work)


def test_what_is_broken_off_has_had_its_time_however_often_something_else_is_desired(
    boards: Boards, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(executor, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    boards.executor.hold(boards.plan(1, B), {Run(segment=WHOLE): Quick()})
    held, inbox = boards.executor._enter(1), Inbox(frozenset({B}), frozenset({(0, B, 0)}))
    held.inboxes.add(inbox)

    def ended_at(second: float) -> bool:
        now_s[0] = second
        assert not boards.executor.drop(1)
        try:
            inbox.take([(0, B, 0)], 0.0)
        except BoardError as error:
            return "is over" in str(error)
        raise AssertionError("nothing can have come")

    assert [ended_at(second) for second in (100.0, 104.9)] == [False, False]
    boards.executor.keep(1)
    assert [ended_at(second) for second in (106.0, 110.9, 111.0)] == [False, False, True]
    boards.executor._leave(held)
    assert boards.executor.drop(1)


def test_an_epoch_number_with_another_plan_is_prepared_anew(boards: Boards) -> None:
    async def work() -> None:
        await boards.reconciler.act(boards.desired(boards.plan(1), committed=1))
        other = boards.plan(1, B)
        await boards.reconciler.act(boards.desired(other, committed=1))
        assert boards.executor.epochs() == {1: other}
        assert boards.dispatcher.plan == other

    run(work)


def test_a_plan_that_does_not_fit_is_reported_with_the_reason(boards: Boards) -> None:
    async def work() -> None:
        boards.room = False
        await boards.reconciler.act(boards.desired(boards.plan(1)))
        (readiness,) = boards.reconciler.epochs
        assert (readiness.phase, readiness.detail) == ("failed", "does not fit")
        boards.room = True
        await boards.reconciler.act(boards.desired(boards.plan(1)))
        assert boards.phases() == {1: "ready"}

    run(work)


def test_a_manifest_that_cannot_be_had_is_an_error_to_be_tried_again(boards: Boards) -> None:
    """Else the board would never learn who leads, and hold requests for ever."""

    async def work() -> None:
        boards.away = True
        elsewhere = boards.desired(boards.plan(1, lead=B), committed=1)
        with pytest.raises(BoardError, match="no answer"):
            await boards.reconciler.act(elsewhere)
        boards.away = False
        await boards.reconciler.act(elsewhere)
        assert boards.dispatcher.plan == boards.plan(1, lead=B)

    run(work)


def test_a_newer_wish_breaks_off_one_that_cannot_be_fulfilled(boards: Boards) -> None:
    boards.away = True

    async def work() -> None:
        becoming = asyncio.ensure_future(boards.reconciler.run())
        plan = boards.plan(1, B, lead=B)
        boards.reconciler.wish(boards.desired(plan, committed=1))
        while not boards.reconciler.activity.startswith("failed"):
            await asyncio.sleep(0.001)
        boards.reconciler.wish(boards.desired())
        while boards.reconciler.activity != "idle":
            await asyncio.sleep(0.001)
        assert boards.reconciler.epochs == ()
        becoming.cancel()

    run(work)


def test_what_a_board_says_now_is_its_address_whatever_older_plans_say(boards: Boards) -> None:
    async def work() -> None:
        new = build.address_of(B, 2)
        wanted = replace(boards.desired(boards.plan(1, B)), peers={B: new})
        await boards.reconciler.act(wanted)
        assert boards.known[B] == new

    run(work)


def test_what_plans_to_come_need_is_fetched_gently_when_all_else_is_done(boards: Boards) -> None:
    s01 = boards.manifest.by_name["s01"]

    async def work() -> None:
        becoming = asyncio.ensure_future(boards.reconciler.run())
        plan = boards.plan(1)
        boards.reconciler.wish(boards.desired(plan, committed=1, ahead=(Run(segment="s01"),)))
        gentle = [f"gently {blob.sha256}" for blob in (s01.model, *s01.weights)]
        while boards.fetched[-len(gentle) :] != gentle:
            await asyncio.sleep(0.001)
        assert boards.phases() == {1: "ready"}
        assert boards.opened == ["whole"], "nothing of it is loaded"
        assert boards.reconciler._room.ahead == tuple(sorted(b.sha256 for b in (s01.model, *s01.weights)))
        becoming.cancel()

    run(work)


def test_plans_in_force_and_those_on_their_way_are_needed(boards: Boards) -> None:
    async def work() -> None:
        await boards.reconciler.act(boards.desired(boards.plan(1), boards.plan(2, B, lead=B), committed=1))
        whole = boards.manifest.whole
        assert boards.reconciler._room.needed == {
            boards.bundle, whole.model.sha256, *(blob.sha256 for blob in whole.weights)
        }  # fmt: skip

    run(work)


ASKED = Golden(inputs={"x": np.zeros(3, np.float32)}, outputs={"y": np.array([1.0, 1.0, 1.0], np.float32)})


@pytest.mark.parametrize(("answer", "right"), [(1.0, True), (1.0005, True), (1.01, False), (np.nan, False)])
def test_a_lead_proves_a_plan_with_the_golden_request(
    boards: Boards, monkeypatch: pytest.MonkeyPatch, answer: float, right: bool
) -> None:
    monkeypatch.setattr(Quick, "answer", answer)
    boards.manifest = replace(boards.manifest, golden=boards.store.put(pack(ASKED)))
    boards.bundle = boards.store.put(to_json(boards.manifest)).sha256

    async def work() -> None:
        await boards.reconciler.act(boards.desired(boards.plan(1)))
        assert (boards.reconciler.proven, boards.phases()) == (0, {1: "ready"})
        await boards.reconciler.act(boards.desired(boards.plan(1), proving=1))
        assert boards.reconciler.proven == (1 if right else 0)
        (readiness,) = boards.reconciler.epochs
        assert readiness.phase == ("ready" if right else "failed")
        assert right or readiness.detail.startswith("not proven: output y: off by")
        assert boards.dispatcher.plan is None, "it is not in force by that"

    run(work)


def test_a_board_that_does_not_lead_proves_nothing(boards: Boards) -> None:
    boards.manifest = replace(boards.manifest, golden=boards.store.put(pack(ASKED)))
    boards.bundle = boards.store.put(to_json(boards.manifest)).sha256

    async def work() -> None:
        await boards.reconciler.act(boards.desired(boards.plan(1, B, lead=B), proving=1))
        assert boards.reconciler.proven == 0

    run(work)


def test_where_the_disk_is_too_small_for_the_bundle_one_segment_of_each_kind_comes(boards: Boards) -> None:
    alike = tuple(replace(segment, kind="layer") for segment in boards.manifest.segments)
    boards.manifest = replace(boards.manifest, segments=alike)
    source = build.source(manifest=boards.bundle)
    boards.reconciler._room = Room(boards.store, 250)
    asyncio.run(boards.reconciler.fetch_all(source, boards.manifest))
    first = alike[0]
    assert set(boards.fetched) == {first.model.sha256, *(blob.sha256 for blob in first.weights)}
    assert boards.reconciler.missing_bytes == sum(b.size_bytes for b in boards.manifest.blobs.values())
    boards.fetched.clear()
    boards.reconciler._room = Room(boards.store, 10_000)
    asyncio.run(boards.reconciler.fetch_all(source, boards.manifest))
    assert set(boards.fetched) == set(boards.manifest.blobs)


def test_a_board_is_ready_for_codes_once_it_has_their_books(boards: Boards) -> None:
    manifest = build.sharded()
    codec = codec_of("vq2x4")
    told = programs(manifest.shardings[0], (A, B), A, (0.5, 0.5), codec)
    lane = Lane(programs=told, weight=1.0)

    def plan(manifest: Manifest) -> Plan:
        boards.bundle = boards.store.put(to_json(manifest)).sha256
        return replace(boards.plan(1, B), lanes=(lane,))

    async def work() -> None:
        await boards.reconciler.act(boards.desired(plan(manifest)))
        (readiness,) = boards.reconciler.epochs
        assert readiness.phase == "failed"
        assert "codebook vq2x4 of k.part, sequence exchange 2: there is none" in readiness.detail
        await boards.reconciler.act(boards.desired())
        record = build.codebook(manifest, codec)
        foreign = replace(record, source=build.sha(77))
        await boards.reconciler.act(boards.desired(plan(replace(manifest, codebooks=(foreign,)))))
        (readiness,) = boards.reconciler.epochs
        assert f"expected one for model {manifest.source_sha256[:12]}, got one for" in readiness.detail
        await boards.reconciler.act(boards.desired())
        await boards.reconciler.act(boards.desired(plan(replace(manifest, codebooks=(record,)))))
        assert boards.phases() == {1: "ready"}
        assert record.blob.sha256 in boards.fetched
        held = boards.executor._held[1]
        assert {step: dict(books) for step, books in held.books.items()} == {(0, 2): {"k.part": _BOOK}}
        await boards.reconciler.act(boards.desired())
        assert record.blob.sha256 not in boards.books_kept

    run(work)


def test_codebooks_of_plans_to_come_are_fetched_and_strange_blobs_are_not(boards: Boards) -> None:
    codec = codec_of("vq2x4")
    book = build.codebook(build.sharded(), codec)
    boards.manifest = replace(build.sharded(), codebooks=(book,))
    boards.bundle = boards.store.put(to_json(boards.manifest)).sha256

    async def work() -> None:
        becoming = asyncio.ensure_future(boards.reconciler.run())
        boards.reconciler.wish(boards.desired(ahead=(book.blob, build.blob(77))))
        while boards.reconciler._room.ahead != (book.blob.sha256,):
            await asyncio.sleep(0.001)
        becoming.cancel()

    run(work)
    assert f"gently {book.blob.sha256}" in boards.fetched
    assert not any(build.blob(77).sha256 in each for each in boards.fetched)


def test_what_has_no_room_is_passed_over_for_what_is_less_likely(boards: Boards) -> None:
    first, second = (boards.manifest.by_name[name] for name in ("s00", "s01"))
    boards.full = {blob.sha256 for blob in first.weights}

    async def work() -> None:
        becoming = asyncio.ensure_future(boards.reconciler.run())
        ahead = (Run(segment="s00"), Run(segment="s01"))
        boards.reconciler.wish(boards.desired(ahead=ahead))
        wanted = tuple(sorted(blob.sha256 for blob in (second.model, *second.weights)))
        while boards.reconciler._room.ahead != wanted:
            await asyncio.sleep(0.001)
        becoming.cancel()

    run(work)
