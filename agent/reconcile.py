"""Makes the board what is desired of it, step by step, and says how far it is.

Each new desired message starts anew; every step first looks whether it is done already, so breaking off
and starting again costs nothing but the step under way.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Set
from typing import Final, TypeVar

from shoal.agent.dispatch import Dispatcher
from shoal.agent.executor import Executor
from shoal.agent.fetch import Fetcher
from shoal.agent.peers import Peers
from shoal.agent.proof import allowed
from shoal.agent.room import FullError, Needs, Room
from shoal.agent.sessions import Sessions
from shoal.codebooks import Wanted, each, other_blobs, wanted
from shoal.errors import BoardError, ModelError
from shoal.golden import unpack, why_wrong
from shoal.manifest import Manifest
from shoal.memory import give_back
from shoal.messages import BundleSource, Desired, Readiness
from shoal.profiler.counts import samples
from shoal.profiler.segments import timed
from shoal.program import Plan, Run
from shoal.records import Address, Blob, BoardId
from shoal.session import Session, shrink
from shoal.store import Store

log = logging.getLogger(__name__)

POLL_S: Final = 0.02
PROOF_S: Final = 3.0
PROOF_TIMES: Final = 8.0
"""The golden request may take so many times what is predicted, and so much more, ..."""
PROOF_TRIES: Final = 2
"""... and if no answer comes, it is asked once more."""
RETRY_S: Final = 2.0
"""What cannot be done now is tried again after so long."""


class Reconciler:
    """What this board is ready for, and the way there."""

    def __init__(
        self,
        board: BoardId,
        store: Store,
        fetcher: Fetcher,
        sessions: Sessions,
        executor: Executor,
        peers: Peers,
        dispatcher: Dispatcher,
        room: Room,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called whenever `epochs`, `activity` or `missing_bytes` has changed."""
        self._board = board
        self._store = store
        self._fetcher = fetcher
        self._sessions = sessions
        self._executor = executor
        self._peers = peers
        self._dispatcher = dispatcher
        self._room = room
        self._changed = changed
        self._epochs: dict[int, Readiness] = {}
        self._wished: Desired | None = None
        self._news = asyncio.Event()
        self.activity = "waiting for the coordinator"
        self.missing_bytes = 0
        """Of the deployed bundle, what is not on this board's disk."""
        self.proven = 0
        """The last epoch that this board has led the golden request through, with the right answer."""

    @property
    def epochs(self) -> tuple[Readiness, ...]:
        """Return how far the board is with each plan."""
        return tuple(self._epochs[epoch] for epoch in sorted(self._epochs))

    def wish(self, desired: Desired) -> None:
        """Hear what is desired now, in place of what was."""
        self._wished = desired
        self._news.set()

    async def run(self) -> None:
        """Become what was wished last, for ever; a newer wish breaks off what is under way."""
        work: asyncio.Task[None] | None = None
        while True:
            await self._news.wait()
            self._news.clear()
            if work is not None:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            if self._wished is not None:
                work = asyncio.ensure_future(self._become(self._wished))

    async def _become(self, desired: Desired) -> None:
        """Do what is desired, and try again if it cannot be done now."""
        while True:
            try:
                await self.act(desired)
            except (BoardError, ModelError) as error:
                log.warning("%s; trying again", error)
                self.activity = f"failed: {error}"
            except Exception:
                log.exception("cannot become what is desired; trying again")
                self.activity = "failed: internal error, see the board's log"
            else:
                self._changed()
                await self._place(desired)
                return
            self._changed()
            await asyncio.sleep(RETRY_S)

    async def act(self, desired: Desired) -> None:
        """Return once the board is what is desired, as far as that is possible.

        Raises BoardError or ModelError if the plan in force cannot be served because its manifest cannot be
        had; everything else has been done then, and it can be tried again.
        """
        addresses: dict[BoardId, Address] = {}
        for plan in reversed(desired.plans):
            addresses |= plan.addresses
        self._peers.know(addresses | dict(desired.peers))  # what a board says now is newest
        wanted = {plan.epoch: plan for plan in desired.plans}
        self._room.needed = self._needed(desired)
        committed = wanted.get(desired.committed)
        if committed is None:
            await self._dispatcher.serve(None, None)
        elif committed.lead != self._board or committed == self._executor.epochs().get(committed.epoch):
            with contextlib.suppress(BoardError, ModelError):  # tried again below
                await self._serve(committed, desired.bundle)
        await self._drop_all_but(wanted, desired.peers.keys() | {self._board})
        for plan in desired.plans:
            if self._board in plan.boards and plan.epoch not in self._executor.epochs():
                await self._prepare(plan, desired.bundle)
        proving = wanted.get(desired.proving)
        if proving is not None and proving.lead == self._board and proving.epoch != self.proven:
            await self._prove(proving, desired.bundle)
        if committed is not None and (
            committed.lead != self._board or committed.epoch in self._executor.epochs()
        ):
            await self._serve(committed, desired.bundle)
        self._say("serving" if committed else "idle")

    def _needed(self, desired: Desired) -> frozenset[str]:
        """Return the names of the files that plans need which are desired or still held."""
        needed = set[str]() if desired.bundle is None else {str(desired.bundle.manifest)}
        for plan in (*desired.plans, *self._executor.epochs().values()):
            needed.add(plan.bundle)
            if self._store.has(plan.bundle):
                manifest = self._store.manifest(plan.bundle)
                segments = manifest.by_name
                runs = {
                    run: segments[run.segment] for run in plan.runs_of(self._board) if run.segment in segments
                }
                needed |= Needs.of(runs).names
                with contextlib.suppress(ModelError):  # said when it is prepared
                    needed |= each(self._codebooks(plan, manifest).values()).keys()
        return frozenset(needed)

    async def manifest(self, source: BundleSource) -> Manifest:
        """Return the manifest of a bundle, fetched if need be; BoardError or ModelError if it cannot."""
        await self._fetcher.fetch_manifest(source.url, source.manifest)
        return self._store.manifest(source.manifest)

    async def fetch_all(self, source: BundleSource, manifest: Manifest) -> None:
        """Return once the bundle is here but for codebooks.

        Where the disk is too small, one segment of each kind is enough to time them all.  Errors as
        `manifest`.
        """
        wanted = set(other_blobs(manifest))
        if not self._room.fits(wanted):
            wanted, kinds = set(), set[str]()
            for segment in timed(manifest):
                more = wanted.union((segment.model, *segment.weights))
                if segment.kind not in kinds and self._room.fits(more):
                    wanted = more
                    kinds.add(segment.kind)
        await self._fetcher.fetch(source.url, wanted)
        await self._count(manifest)

    async def _count(self, manifest: Manifest) -> None:
        """Count what of the bundle is not here."""
        missing = [
            blob
            for blob in other_blobs(manifest)
            if not await asyncio.to_thread(self._store.has, blob.sha256)
        ]
        missing_bytes = sum(blob.size_bytes for blob in missing)
        if missing_bytes != self.missing_bytes:
            self.missing_bytes = missing_bytes
            self._changed()

    async def _place(self, desired: Desired) -> None:
        """Fetch what plans to come are likely to need, as far as there is room, with nothing else to do."""
        source = desired.bundle
        if source is None or not desired.ahead:
            return
        try:
            manifest = await self.manifest(source)
            held: list[str] = []
            for one in desired.ahead:
                if isinstance(one, Blob):
                    needs = Needs(blobs=(manifest.blobs[one.sha256],), pieces=())
                else:
                    needs = Needs.of({one: manifest.by_name[one.segment]})
                more = sorted(needs.names.difference(held))
                try:
                    await self._fetcher.fetch(source.url, needs.blobs, [*held, *more], gently=True)
                    await self._fetcher.fetch_pieces(source.url, needs.pieces, [*held, *more], gently=True)
                except FullError:
                    continue  # what is less likely may be smaller
                held += more
                self._room.ahead = (*held, *(name for name in self._room.ahead if name not in held))
            self._room.ahead = tuple(held)
        except (BoardError, ModelError, KeyError) as error:
            log.info("not placed beforehand: %s", error)
        else:
            log.info("%d files are here for plans to come", len(held))
            await self._count(manifest)

    async def _serve(self, plan: Plan, source: BundleSource | None) -> None:
        if source is not None and source.manifest == plan.bundle:
            await self.manifest(source)
        await self._dispatcher.serve(plan, self._store.manifest(plan.bundle))

    async def _drop_all_but(self, wanted: Mapping[int, Plan], living: Set[BoardId]) -> None:
        """Drop every other plan once its requests are through, and unload what none needs."""
        for epoch, plan in self._executor.epochs().items():
            if wanted.get(epoch) == plan:
                self._executor.keep(epoch)
                continue
            while not self._executor.drop(epoch, plan.boards - living):
                await asyncio.sleep(POLL_S)
        await _in_thread(self._unload)
        gone = self._epochs.keys() - wanted.keys()
        for epoch in gone:
            del self._epochs[epoch]
        if gone:
            self._changed()

    def _unload(self) -> None:
        plans = self._executor.epochs().values()
        self._sessions.keep(
            (self._store.manifest(plan.bundle).by_name[run.segment], run)
            for plan in plans
            for run in plan.runs_of(self._board)
        )
        needed = (
            codebooks
            for plan in plans
            for codebooks in self._codebooks(plan, self._store.manifest(plan.bundle)).values()
        )
        self._sessions.keep_books(each(needed))
        shrink()
        give_back()

    async def _prepare(self, plan: Plan, source: BundleSource | None) -> None:
        """Fetch and load what this board needs for `plan`, and be ready for it."""
        self._set(plan.epoch, "preparing", "")
        self._say(f"preparing epoch {plan.epoch}")
        try:
            if source is None or source.manifest != plan.bundle:
                manifest = self._store.manifest(plan.bundle)
            else:
                manifest = await self.manifest(source)
            runs = {run: manifest.by_name[run.segment] for run in plan.runs_of(self._board)}
            codebooks = self._codebooks(plan, manifest)
            needs = Needs.of(runs).and_blobs(book.blob for book in each(codebooks.values()).values())
            self._room.needed |= needs.names
            if source is not None:
                await self._fetcher.fetch(source.url, needs.blobs)
                await self._fetcher.fetch_pieces(source.url, needs.pieces)
            books = await _in_thread(lambda: self._sessions.open_books(each(codebooks.values())))
            sessions = await _in_thread(lambda: self._sessions.open(runs))
            await _in_thread(lambda: self._warm(manifest, sessions))
        except (BoardError, ModelError) as error:
            log.warning("epoch %d: %s", plan.epoch, error)
            self._set(plan.epoch, "failed", str(error))
            return
        except KeyError as error:
            self._set(plan.epoch, "failed", f"the bundle has no segment {error}")
            return
        by_step = {
            (lane, tag): {tensor: books[one.blob.sha256] for tensor, one in by_tensor.items()}
            for lane, by_tag in codebooks.items()
            for tag, by_tensor in by_tag.items()
        }
        self._executor.hold(plan, sessions, by_step)
        self._set(plan.epoch, "ready", "")

    async def _prove(self, plan: Plan, source: BundleSource | None) -> None:
        """Lead the golden request through every lane of a plan for which all boards are ready."""
        self._say(f"proving epoch {plan.epoch}")
        why = ""
        for _ in range(PROOF_TRIES):
            try:
                why = await self._why_wrong(plan, source)
                break
            except (BoardError, ModelError) as error:
                why = str(error)
        if why:
            log.warning("epoch %d is not proven: %s", plan.epoch, why)
            self._set(plan.epoch, "failed", f"not proven: {why}")
            return
        self.proven = plan.epoch
        self._changed()

    async def _why_wrong(self, plan: Plan, source: BundleSource | None) -> str:
        """Return what is wrong with the answers of a plan to the golden request; empty if nothing is.

        Raises BoardError or ModelError if there is no answer.
        """
        manifest = self._store.manifest(plan.bundle)
        if manifest.golden is None:
            return ""
        self._room.needed |= {manifest.golden.sha256}
        if source is not None:
            await self._fetcher.fetch(source.url, [manifest.golden])
        golden = unpack(await asyncio.to_thread(self._store.path(manifest.golden.sha256).read_bytes))
        until_s = time.monotonic() + PROOF_S + PROOF_TIMES * plan.predicted.latency_s
        names = [spec.name for spec in manifest.outputs]
        answers = await asyncio.gather(
            *(
                asyncio.get_running_loop().run_in_executor(
                    self._executor.threads,
                    self._executor.lead,
                    plan.epoch,
                    lane,
                    secrets.token_bytes(16),
                    golden.inputs,
                    until_s,
                    names,
                )
                for lane in range(len(plan.lanes))
            )
        )
        found = (
            why_wrong(golden, answer, allowed(manifest, lane))
            for lane, answer in zip(plan.lanes, answers, strict=True)
        )
        return next(filter(None, found), "")

    def _codebooks(self, plan: Plan, manifest: Manifest) -> dict[int, Wanted]:
        """Return the codebooks that this board needs for each lane of `plan`."""
        return {
            number: wanted(manifest, lane.programs[self._board])
            for number, lane in enumerate(plan.lanes)
            if self._board in lane.programs
        }

    def _warm(self, manifest: Manifest, sessions: Mapping[Run, Session]) -> None:
        """Run each segment once, so that the first request does not pay for its set-up."""
        for run, session in sessions.items():
            # Made-up tensors need not make sense in the middle of a model.
            with contextlib.suppress(ModelError), self._executor.alone:
                session.work(samples(manifest.by_name[run.segment], manifest.sizes))
        shrink()
        give_back()

    def _set(self, epoch: int, phase: str, detail: str) -> None:
        self._epochs[epoch] = Readiness(epoch=epoch, phase=phase, detail=detail)  # type: ignore[arg-type]
        self._changed()

    def _say(self, activity: str) -> None:
        if activity != self.activity:
            self.activity = activity
            self._changed()


T = TypeVar("T")


async def _in_thread(work: Callable[[], T]) -> T:
    """Return what `work` returns; if we are cancelled meanwhile, end only once it has ended."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
