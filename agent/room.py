"""Keeps a board's files of bundles within its disk budget: what is needed stays, what is not goes first."""

import logging
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from shoal.errors import BoardError
from shoal.manifest import Segment
from shoal.parts import Piece, pieces
from shoal.program import Run
from shoal.records import Blob
from shoal.store import Store

log = logging.getLogger(__name__)

SPARE_BYTES: Final = 16 << 20
"""Left free on the disk."""


class FullError(BoardError):
    """There is no room for files, even if all went that nobody needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Files that runs of segments need."""

    blobs: tuple[Blob, ...]
    pieces: tuple[Piece, ...]
    """Of weights of which the board has a part."""

    @classmethod
    def of(cls, runs: Mapping[Run, Segment]) -> "Needs":
        """Return what these runs need: of weights that are divided only the board's pieces."""
        blobs: list[Blob] = []
        wanted: list[Piece] = []
        for run, segment in runs.items():
            sliced = {one.blob for one in segment.slices} if run.part else set[Blob]()
            blobs += [segment.model, *(blob for blob in segment.weights if blob not in sliced)]
            wanted += pieces(segment, run.part) if run.part else ()
        return cls(blobs=tuple(dict.fromkeys(blobs)), pieces=tuple(dict.fromkeys(wanted)))

    def and_blobs(self, blobs: Iterable[Blob]) -> "Needs":
        """Return these needs and some blobs besides."""
        return replace(self, blobs=tuple(dict.fromkeys((*self.blobs, *blobs))))

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the files; a piece may also be had of the whole weight's."""
        whole = (piece.slice.blob.sha256 for piece in self.pieces)
        return frozenset((*(blob.sha256 for blob in self.blobs), *(p.name for p in self.pieces), *whole))


class Room:
    """The room for files of bundles."""

    def __init__(self, store: Store, budget_bytes: int | None) -> None:
        """`budget_bytes` is what all files together may take; None: whatever the disk has."""
        self._store = store
        self._budget_bytes = budget_bytes
        self.needed: frozenset[str] = frozenset()
        """Names of files that plans in force, and those being prepared, need."""
        self.ahead: tuple[str, ...] = ()
        """Names of files that are held for plans to come, the most likely first."""

    @property
    def limit_bytes(self) -> int:
        """Return what all files together may take now."""
        free_bytes = shutil.disk_usage(self._store.root).free - SPARE_BYTES
        used_bytes = sum(file.size_bytes for file in self._store.files().values())
        limit_bytes = max(0, used_bytes + free_bytes)
        return limit_bytes if self._budget_bytes is None else min(self._budget_bytes, limit_bytes)

    def fits(self, blobs: Iterable[Blob]) -> bool:
        """Say whether these could all be here, beside what is needed."""
        files = self._store.files()
        wanted = {blob.sha256: blob.size_bytes for blob in blobs}
        others = sum(files[name].size_bytes for name in self.needed if name in files and name not in wanted)
        return others + sum(wanted.values()) <= self.limit_bytes

    def make(self, size_bytes: int, keep: Collection[str]) -> None:
        """Drop files until `size_bytes` more have room, none that is needed and none of `keep`.

        Those that are held for no plan to come go first, the oldest of them before all.  Raises FullError
        if there is not room enough for all that; then nothing is dropped.
        """
        if not size_bytes:
            return
        files = self._store.files()
        used_bytes = sum(file.size_bytes for file in files.values())
        limit_bytes = self.limit_bytes
        lacking = used_bytes + size_bytes - limit_bytes
        rank = {name: index for index, name in enumerate(reversed(self.ahead), start=1)}
        stays = self.needed.union(keep)
        loose = [name for name in files if name.removesuffix(".part") not in stays]
        loose.sort(key=lambda name: (rank.get(name, 0), files[name].changed_s, name))
        if lacking > sum(files[name].size_bytes for name in loose):
            free_bytes = max(0, limit_bytes - used_bytes)
            raise FullError(
                f"{self._store.root}: disk full: {size_bytes / 1e6:.0f} MB to fetch, {free_bytes / 1e6:.0f} "
                f"MB free; make room, allow more with --disk, or use another --state-dir"
            )
        for name in loose:
            if lacking <= 0:
                return
            log.info("dropped %s: %.1f MB that no plan needs", name[:12], files[name].size_bytes / 1e6)
            self._store.drop(name)
            lacking -= files[name].size_bytes
