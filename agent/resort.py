"""The last resort: a request in one piece on this board, outside any plan."""

import asyncio
import threading
from collections.abc import Mapping

from shoal.agent.sessions import Sessions
from shoal.errors import BoardError
from shoal.manifest import Manifest
from shoal.program import Run
from shoal.records import Array, BoardId
from shoal.store import Store


class LastResort:
    """Runs whole models while nothing else computes."""

    def __init__(self, board: BoardId, store: Store, sessions: Sessions, alone: threading.Lock) -> None:
        """`alone` is held while a segment runs, by whoever runs one."""
        self._board = board
        self._store = store
        self._sessions = sessions
        self._alone = alone

    async def run(self, manifest: Manifest, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the answer, if everything for it is here and fits; else raise BoardError."""
        return await asyncio.to_thread(self._run, manifest, inputs)

    def _run(self, manifest: Manifest, inputs: Mapping[str, Array]) -> dict[str, Array]:
        whole = manifest.whole
        missing = [blob for blob in (whole.model, *whole.weights) if not self._store.has(blob.sha256)]
        if missing:
            raise BoardError(f"{self._board}: {len(missing)} blobs of {manifest.name} are not here")
        run = Run(segment=whole.name)
        session = self._sessions.open({run: whole})[run]
        with self._alone:
            return session.run(inputs)
