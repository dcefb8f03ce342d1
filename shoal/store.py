"""A folder of blobs named by their SHA-256, for those who keep bundles: boards and the coordinator.

blobs/<sha256>          whole, verified blobs
blobs/<sha256>.part     what has come so far of a blob under way
blobs/<sha256>.<start>-<stop>   units of a weight of which this board holds a part
<sha256>.onnx           hard links to those blobs that are models, beside `blobs/` because a model
                        names its weights as `blobs/<sha256>`
"""

import errno
import hashlib
import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from shoal.errors import BoardError, ModelError
from shoal.manifest import Manifest, Segment, parse
from shoal.parts import Piece, is_piece, write_part
from shoal.records import Blob, Sha256

CHUNK_BYTES: Final = 1 << 20
MANIFESTS: Final = 2
"""So many are kept in memory: a large one takes a while to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file among the blobs."""

    size_bytes: int
    changed_s: float


class Store:
    """Blobs on disk."""

    def __init__(self, root: Path) -> None:
        """Open the store in `root`, making the folder if need be."""
        self.root = root
        self._blobs = root / "blobs"
        self._verified: dict[Sha256, tuple[int, int]] = {}
        self._pieces: dict[str, tuple[int, int]] = {}
        self._manifests: OrderedDict[Sha256, Manifest] = OrderedDict()
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BoardError(f"{self._blobs}: cannot make the folder: {error.strerror}") from error

    def path(self, sha256: Sha256) -> Path:
        """Return where the blob is or would be."""
        return self._blobs / sha256

    def has(self, sha256: Sha256) -> bool:
        """Say whether the blob is here, whole and unspoilt; a spoilt one is removed.

        Reads the file the first time, and again when its size or time of change is another.
        """
        path = self.path(sha256)
        try:
            stat = path.stat()
            stamp = (stat.st_size, stat.st_mtime_ns)
            if self._verified.get(sha256) == stamp:
                return True
            with path.open("rb") as file:
                whole = digest(file) == sha256
        except FileNotFoundError:
            return False
        if not whole:
            path.unlink(missing_ok=True)
            self._link(sha256).unlink(missing_ok=True)  # the same bytes under another name
            return False
        self._verified[sha256] = stamp
        return True

    def part(self, sha256: Sha256) -> Path:
        """Return where a blob under way is collected."""
        return self._blobs / f"{sha256}.part"

    def finish(self, blob: Blob) -> None:
        """Take the collected part as the blob.  Raises ModelError, and drops it, if it is not that."""
        part = self.part(blob.sha256)
        with part.open("rb") as file:
            found = digest(file)
        size_bytes = part.stat().st_size
        if found != blob.sha256:
            part.unlink()
            raise ModelError(
                f"blob {blob.sha256[:12]}: expected that digest and {blob.size_bytes} bytes, got "
                f"{found[:12]} and {size_bytes} bytes"
            )
        path = self.path(blob.sha256)
        part.replace(path)
        stat = path.stat()
        self._verified[blob.sha256] = (stat.st_size, stat.st_mtime_ns)

    def put(self, content: bytes) -> Blob:
        """Store `content` and return its blob."""
        blob = Blob(sha256=Sha256(hashlib.sha256(content).hexdigest()), size_bytes=len(content))
        with writing(self.part(blob.sha256)) as file:
            file.write(content)
        self.finish(blob)
        return blob

    def model(self, sha256: Sha256) -> Path:
        """Return the path under which a model blob can be opened with its weights."""
        link = self._link(sha256)
        if not link.exists():
            link.hardlink_to(self.path(sha256))
        return link

    def has_piece(self, piece: Piece) -> bool:
        """Say whether a piece of a weight is here, by itself or in the whole weight, and unspoilt."""
        if self.has(piece.slice.blob.sha256):
            return True
        path = self._blobs / piece.name
        try:
            stat = path.stat()
        except FileNotFoundError:
            return False
        stamp = (stat.st_size, stat.st_mtime_ns)
        if self._pieces.get(piece.name) != stamp:
            if not is_piece(path, piece):
                return False
            self._pieces[piece.name] = stamp
        return True

    def draft(self, piece: Piece) -> Path:
        """Return where a piece under way is collected."""
        return self._blobs / f"{piece.name}.part"

    def finish_piece(self, piece: Piece) -> None:
        """Take the collected draft as the piece.  Raises ModelError, and drops it, if it is not that."""
        draft = self.draft(piece)
        if not is_piece(draft, piece):
            size_bytes = draft.stat().st_size
            draft.unlink()
            raise ModelError(
                f"blob {piece.name[:12]}, units {piece.start} to {piece.stop}: expected {piece.size_bytes} "
                f"bytes of their digests, got {size_bytes} others"
            )
        draft.replace(self._blobs / piece.name)

    def model_part(self, segment: Segment, part: tuple[int, ...]) -> Path:
        """Return the path under which a part of a segment can be opened with its pieces of weights."""
        target = self.root / f"{segment.model.sha256}.{part[0]}-{part[1]}.onnx"
        write_part(self.path(segment.model.sha256), segment, part, self._blobs, target)
        return target

    def files(self) -> dict[str, File]:
        """Return all files among the blobs by name: blobs, pieces of them, and what has come of others."""
        found = {}
        for path in self._blobs.iterdir():
            with suppress(FileNotFoundError):  # renamed just now
                stat = path.stat()
                found[path.name] = File(size_bytes=stat.st_size, changed_s=stat.st_mtime)
        return found

    def drop(self, name: str) -> None:
        """Remove a file among the blobs, and of a model the other names that it has."""
        (self._blobs / name).unlink(missing_ok=True)
        for link in self.root.glob(f"{name}*.onnx"):
            link.unlink(missing_ok=True)
        self._verified.pop(Sha256(name), None)
        self._pieces.pop(name, None)

    def _link(self, sha256: Sha256) -> Path:
        return self.root / f"{sha256}.onnx"

    def manifest(self, sha256: Sha256) -> Manifest:
        """Return the manifest with that digest.  Raises ModelError if it cannot be read."""
        if not self.has(sha256):
            raise ModelError(f"manifest {sha256[:12]}: not in {self.root}")
        known = self._manifests.pop(sha256, None)
        if known is None:
            known = parse(self.path(sha256).read_bytes(), f"manifest {sha256[:12]}")
        self._manifests[sha256] = known  # the last ones that were asked for
        while len(self._manifests) > MANIFESTS:
            self._manifests.popitem(last=False)
        return known


class writing:  # noqa: N801  a context manager, used as a verb
    """Open a file for appending; a full disk becomes a BoardError that says how much is free."""

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._mode = "ab" if append else "wb"

    def __enter__(self) -> BinaryIO:
        try:
            self._file = self._path.open(self._mode)  # type: ignore[assignment]
        except OSError as error:
            raise _no_room(self._path, error) from error
        assert self._file is not None
        return self._file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._file is not None
        try:
            self._file.close()
        except OSError as late:
            raise _no_room(self._path, late) from late
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise _no_room(self._path, error) from error


_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_THE_DISK: Final = (*_FULL, errno.EIO, errno.EROFS)
"""What else comes up while a file is written, like silence of the network, is not the disk's fault."""


def _no_room(path: Path, error: OSError) -> BoardError:
    if error.errno in _FULL:
        disk = os.statvfs(path.parent)
        free_mb = disk.f_bavail * disk.f_frsize / 1e6
        return BoardError(f"{path.parent}: disk full, {free_mb:.1f} MB free; make room or use another folder")
    return BoardError(f"{path}: cannot write: {error.strerror}")


def digest(file: BinaryIO) -> Sha256:
    """Return the SHA-256 of what is left to read in `file`."""
    seen = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        seen.update(chunk)
    return Sha256(seen.hexdigest())
