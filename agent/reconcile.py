"""Makes the board what is desired of it, step by step, and says how far it is.

Each new desired message starts anew; every step first looks whether it is done already, so breaking off
and starting again costs nothing but the step under way.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from shoal.agent.dispatch import Dispatcher
from shoal.agent.executor import Executor
from shoal.agent.fetch import Fetcher
from shoal.agent.peers import Peers
from shoal.agent.sessions import Sessions
from shoal.codebooks import Wanted, each, other_blobs, wanted
from shoal.errors import BoardError, ModelError
from shoal.manifest import Manifest, Segment
from shoal.memory import give_back
from shoal.messages import BundleSource, Desired, Readiness
from shoal.parts import Piece, pieces
from shoal.profiler.counts import samples
from shoal.program import Plan, Run
from shoal.records import Address, Blob, BoardId
from shoal.session import Session
from shoal.store import Store

log = logging.getLogger(__name__)

POLL_S: Final = 0.02
GRACE_S: Final = 5.0
"""Requests of a plan that is no longer wanted get so long to end."""
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
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called whenever `epochs` or `activity` has changed."""
        self._board = board
        self._store = store
        self._fetcher = fetcher
        self._sessions = sessions
        self._executor = executor
        self._peers = peers
        self._dispatcher = dispatcher
        self._changed = changed
        self._epochs: dict[int, Readiness] = {}
        self._wished: Desired | None = None
        self._news = asyncio.Event()
        self.activity = "waiting for the coordinator"

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
        committed = wanted.get(desired.committed)
        if committed is None:
            await self._dispatcher.serve(None, None)
        elif committed.lead != self._board or committed == self._executor.epochs().get(committed.epoch):
            with contextlib.suppress(BoardError, ModelError):  # tried again below
                await self._serve(committed, desired.bundle)
        await self._drop_all_but(wanted)
        for plan in desired.plans:
            if self._board in plan.boards and plan.epoch not in self._executor.epochs():
                await self._prepare(plan, desired.bundle)
        if committed is not None and (
            committed.lead != self._board or committed.epoch in self._executor.epochs()
        ):
            await self._serve(committed, desired.bundle)
        self._say("serving" if committed else "idle")

    async def manifest(self, source: BundleSource) -> Manifest:
        """Return the manifest of a bundle, fetched if need be; BoardError or ModelError if it cannot."""
        await self._fetcher.fetch_manifest(source.url, source.manifest)
        return self._store.manifest(source.manifest)

    async def fetch_all(self, source: BundleSource, manifest: Manifest) -> None:
        """Return once every blob of the bundle is here but codebooks; errors as `manifest`."""
        await self._fetcher.fetch(source.url, other_blobs(manifest))

    async def _serve(self, plan: Plan, source: BundleSource | None) -> None:
        if source is not None and source.manifest == plan.bundle:
            await self.manifest(source)
        await self._dispatcher.serve(plan, self._store.manifest(plan.bundle))

    async def _drop_all_but(self, wanted: dict[int, Plan]) -> None:
        """Drop every other plan once its requests are through, and unload what none needs."""
        for epoch, plan in self._executor.epochs().items():
            if wanted.get(epoch) == plan:
                self._executor.keep(epoch)
                continue
            given_up_s = time.monotonic() + GRACE_S
            while not self._executor.drop(epoch):
                if time.monotonic() >= given_up_s:
                    self._executor.give_up(epoch)
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
            if source is not None:
                await self._fetch(source.url, runs)
                await self._fetcher.fetch(source.url, [one.blob for one in each(codebooks.values()).values()])
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

    def _codebooks(self, plan: Plan, manifest: Manifest) -> dict[int, Wanted]:
        """Return the codebooks that this board needs for each lane of `plan`."""
        return {
            number: wanted(manifest, lane.programs[self._board])
            for number, lane in enumerate(plan.lanes)
            if self._board in lane.programs
        }

    async def _fetch(self, url: str, runs: Mapping[Run, Segment]) -> None:
        """Return once what these runs need is here: of sliced weights only the board's pieces."""
        blobs: list[Blob] = []
        wanted: list[Piece] = []
        for run, segment in runs.items():
            sliced = {one.blob for one in segment.slices} if run.part else set[Blob]()
            blobs += [segment.model, *(blob for blob in segment.weights if blob not in sliced)]
            wanted += pieces(segment, run.part) if run.part else ()
        await self._fetcher.fetch(url, blobs)
        await self._fetcher.fetch_pieces(url, wanted)

    def _warm(self, manifest: Manifest, sessions: Mapping[Run, Session]) -> None:
        """Run each segment once, so that the first request does not pay for its set-up."""
        for run, session in sessions.items():
            # Made-up tensors need not make sense in the middle of a model.
            with contextlib.suppress(ModelError), self._executor.alone:
                session.run(samples(manifest.by_name[run.segment], manifest.sizes))
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
