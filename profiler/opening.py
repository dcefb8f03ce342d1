"""Opens the segments of a bundle in a folder, and parts of them, without writing to it."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from shoal.manifest import Segment
from shoal.parts import cut_piece, pieces, range_of, write_part
from shoal.session import CPU, Session, open_session

OpenSegment = Callable[[Segment, tuple[int, ...]], Session]
"""Opens a part of a segment's units, () for all; BoardError where memory does not suffice."""


def opener(bundle: Path, *, threads: int, spin_us: int = 0, providers: Sequence[str] = (CPU,)) -> OpenSegment:
    """Return what opens segments of `bundle`; it raises ModelError for one that cannot be opened."""
    opened_so = partial(open_session, threads=threads, spin_us=spin_us, providers=providers)

    def opened(segment: Segment, part: tuple[int, ...]) -> Session:
        model, blobs = bundle / f"{segment.name}.onnx", bundle / "blobs"
        if not part:
            return opened_so(model)
        with tempfile.TemporaryDirectory(prefix="shoal-part-") as name:
            own = Path(name) / blobs.name  # a file's weights must lie beside it
            own.mkdir()
            needed = pieces(segment, part)
            for piece in needed:
                (own / piece.name).write_bytes(b"".join(cut_piece(blobs / piece.slice.blob.sha256, piece)))
            for blob in {*segment.weights} - {piece.slice.blob for piece in needed}:
                shutil.copyfile(blobs / blob.sha256, own / blob.sha256)
            write_part(model, segment, part, own, Path(name) / model.name)
            return opened_so(Path(name) / model.name, fixed=range_of(segment, part))

    return opened
