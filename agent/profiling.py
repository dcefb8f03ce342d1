"""Fetches and measures the deployed bundle, whichever that is, beside whatever else the board does."""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final

from shoal.agent.fetch import Fetcher
from shoal.agent.measure import Measurer
from shoal.agent.reconcile import Reconciler
from shoal.agent.room import Room
from shoal.codebooks import other_blobs
from shoal.errors import BoardError, ModelError
from shoal.firmware_configs.schema import Runtime
from shoal.manifest import Manifest, Precision
from shoal.messages import BundleSource, Desired

log = logging.getLogger(__name__)

RETRY_S: Final = 2.0


def quick(runtime: Runtime) -> frozenset[Precision]:
    """Return the precisions, other than that of a bundle, in which this kind of board is worth timing.

    One that is only stored (`STORED_ONLY`) runs as it was given and is not timed by itself.
    """
    return frozenset({"int8"}) if "int8" in runtime.precisions else frozenset()


class Profiling:
    """Has the board know the deployed bundle: first as it was given, then in what else is wished for."""

    def __init__(
        self,
        reconciler: Reconciler,
        fetcher: Fetcher,
        room: Room,
        measurer: Measurer,
        able: Collection[Precision],
        changed: Callable[[], None],
    ) -> None:
        """`able` are the precisions that this board is for; `changed` is called when `activity` has."""
        self._reconciler = reconciler
        self._fetcher = fetcher
        self._room = room
        self._measurer = measurer
        self._able = able
        self._changed = changed
        self._wished: Desired | None = None
        self._news = asyncio.Event()
        self.activity = ""
        """What is done, in words for a person; empty if nothing is to do."""

    def wish(self, desired: Desired) -> None:
        """Hear what is desired now, in place of what was."""
        self._wished = desired
        self._news.set()

    async def run(self) -> None:
        """Profile what was wished last, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            wished = self._wished
            if wished is None or wished.bundle is None:
                self._say("")
                continue
            try:
                await self._profile(wished.bundle)
                await self._profile_in(
                    wished.bundle, [each for each in wished.precisions if each in self._able]
                )
                self._say("")
            except (BoardError, ModelError, OSError) as error:
                log.warning("%s; trying again", error)
                self._say(f"failed: {error}")
                await asyncio.sleep(RETRY_S)
                self._news.set()

    async def _profile(self, source: BundleSource) -> None:
        """Profile a bundle as it was given, unless that was done before."""
        if self._measurer.profiled(source.manifest):
            return
        self._say(f"fetching {source.name}")
        manifest = await self._reconciler.manifest(source)
        await self._reconciler.fetch_all(source, manifest)
        self._say(f"profiling {source.name}")
        await asyncio.to_thread(self._measurer.measure, source.manifest, manifest)
        self._say("")

    async def _profile_in(self, source: BundleSource, precisions: Collection[Precision]) -> None:
        """Profile it in other precisions too; the board is of use without, so what cannot be is left."""
        if not precisions:
            return
        manifest = await self._reconciler.manifest(source)
        for precision in precisions:
            if not self._measurer.lacks(manifest, precision):
                continue
            try:
                self._say(f"fetching {source.name} in {precision}")
                await self._fetch(source, manifest, precision)
                self._say(f"profiling {source.name} in {precision}")
                await asyncio.to_thread(self._measurer.measure_in, source.manifest, manifest, precision)
            except (BoardError, ModelError) as error:
                log.info("%s in %s: %s", source.name, precision, error)

    async def _fetch(self, source: BundleSource, manifest: Manifest, precision: Precision) -> None:
        """Return once the segments in a precision are here, or where there is less room, one of each kind.

        Nothing of the bundle as it was given goes for that.
        """
        given = set(other_blobs(manifest))
        wanted = set(manifest.blobs_in(precision))
        if not self._room.fits(given | wanted):
            wanted, kinds = set(), set[str]()
            for name, segment in manifest.by_name.items():
                more = wanted.union((segment.model, *segment.weights))
                ours = manifest.swaps.get(name, ("", None))[1] == precision
                if ours and segment.kind not in kinds and self._room.fits(given | more):
                    wanted = more
                    kinds.add(segment.kind)
        keep = {blob.sha256 for blob in given}
        await self._fetcher.fetch(source.url, wanted, keep, gently=True)

    def _say(self, activity: str) -> None:
        if activity != self.activity:
            self.activity = activity
            self._changed()
