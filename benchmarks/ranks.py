"""Runs a program on boards of the lab, one process each, beside the agents that are there."""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from shoal.errors import BoardError
from shoal.lab.places import InNamespaces
from shoal.lab.processes import Process
from shoal.records import BoardId

FIRST_PORT: Final = 29_500
PORTS: Final = 8
"""That one run may use."""
RUN_S: Final = 120.0

Words = Callable[[int, list[str], int], Sequence[object]]
"""The arguments of a rank, told the addresses of all and the first of `PORTS` free ports."""


class Ranks:
    """Processes that talk to each other, rank 0 first, one run of them at a time."""

    def __init__(self, place: InNamespaces, folder: Path) -> None:
        self._place, self._folder = place, folder
        self._port = FIRST_PORT

    async def run(
        self,
        module: str,
        boards: Sequence[BoardId],
        words: Words,
        environment: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Run `module` on each of `boards`, and return the line of JSON that rank 0 writes last.

        Raises BoardError, with what it wrote, if it wrote none.
        """
        self._port += PORTS
        hosts = [self._place.address(board) for board in boards]
        runner = ("/usr/bin/env", *environment, sys.executable, "-m", module)
        logs = [self._folder / f"{module}-{self._port}-{rank}.log" for rank in range(len(boards))]
        ranks = [
            Process(
                [str(word) for word in words(rank, hosts, self._port)], log, self._place.enter(board), runner
            )
            for rank, (board, log) in enumerate(zip(boards, logs, strict=True))
        ]
        try:
            left_s = RUN_S
            while any(rank.running for rank in ranks) and left_s > 0:
                await asyncio.sleep(0.2)
                left_s -= 0.2
        finally:
            for rank in ranks:
                rank.kill()
        said = logs[0].read_text().splitlines()
        if not said or not said[-1].startswith("{"):
            raise BoardError(f"{module}: expected a line of JSON, got {said[-3:]} in {logs[0]}")
        found: dict[str, Any] = json.loads(said[-1])
        return found
