"""The boards of `benchmarks.front`: real agents that are told their plan, on links of any rate.

A board is either given a quota of processor time, or played: each of its runs of a segment takes as long as
on a slower machine, by what the same run takes here when nothing disturbs it.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from benchmarks.front_bundles import books_of
from benchmarks.puppets import Answered, Puppets
from benchmarks.speedup import RTT_S
from shoal.agent.emulation import Settings as Emulated
from shoal.agent.narrow import Narrow, Shared
from shoal.exporter.bundle import read_manifest
from shoal.exporter.together import Manner, play
from shoal.lab.loopback import limits, slots
from shoal.lab.scenario import Shape
from shoal.lab.scenario_file import parse
from shoal.lab.shaping import wiring_of
from shoal.manifest import WHOLE
from shoal.program import Program, Run
from shoal.records import Array, BoardId
from shoal.session import Session, open_session

PACED: Final = 2e6
"""Below so many bits a second the agents hold back what they send, and the cables let through WIDE."""
WIDE: Final = 1e9
FIRST: Final = 100e6
"""Of the cables when the network is looked over."""
PLAYS: Final = 7
"""The quickest of so many runs is what a segment takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretched:
    """What is played, and what it comes to."""

    speed: float
    """Of this machine's core."""
    seconds: Mapping[str, float]
    """Of each segment here, of inputs of these ..."""
    sizes: Mapping[str, int]
    """... many bytes."""
    answers: Mapping[str, Array]
    """Of the same programs in one process."""
    mean_s: float
    """What a board computes on the average, so slowed down."""


class _Timed:
    """A session of which the quickest run is kept, by the bytes of its inputs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.least_s: dict[int, float] = {}
        self.runs = 0

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run it."""
        size_bytes = sum(inputs[name].nbytes for name in self.inputs)
        begun_s = time.perf_counter()
        made = self._session.run(inputs)
        took_s = time.perf_counter() - begun_s
        self.least_s[size_bytes] = min(took_s, self.least_s.get(size_bytes, took_s))
        self.runs += 1
        return made


def stretched(
    bundle: Path, told: Mapping[BoardId, Program], inputs: Mapping[str, Array], alone_s: float
) -> Stretched:
    """Return how boards are to be played of which one alone takes `alone_s`.

    A segment that boards run on more and on fewer rows is timed on the most.
    """
    manifest = read_manifest(bundle)
    lead = next(iter(told))
    timed: dict[str, _Timed] = {}

    def opened(run: Run) -> _Timed:
        if run.segment not in timed:
            timed[run.segment] = _Timed(open_session(bundle / f"{run.segment}.onnx"))
        return timed[run.segment]

    books = books_of(bundle, manifest, told[lead])
    for _ in range(PLAYS):
        opened(Run(segment=WHOLE)).run(inputs)
        made = play(told, lead, inputs, opened, Manner(books=books))
    sizes = {name: max(each.least_s) for name, each in timed.items()}
    found = {name: each.least_s[sizes[name]] for name, each in timed.items()}
    speed = found[WHOLE] / alone_s
    shared_s = sum(found[name] * each.runs / PLAYS for name, each in timed.items() if name != WHOLE) / len(
        told
    )
    names = [spec.name for spec in manifest.outputs]
    return Stretched(
        speed=speed,
        seconds=found,
        sizes=sizes,
        answers={name: made[name] for name in names},
        mean_s=shared_s / speed,
    )


class Boards:
    """Equal boards on a switch; an async context manager."""

    def __init__(self, count: int, quota: float | None, bundle: Path, folder: Path) -> None:
        """Keep logs and state in `folder`; without a quota boards are played."""
        limited = "" if quota is None else f"quota = {quota}\n"
        self._text = (
            f'network.rate = "{FIRST / 1e6:g}mbit"\nnetwork.delay = "{1e3 * RTT_S / 4:g}ms"\n'
            f'broker = "mosquitto"\n[[board]]\nname = "pi"\ncount = {count}\n{limited}'
        )
        scenario = parse(self._text, "benchmark.toml")
        self._wiring = wiring_of(scenario)
        self._shared = folder / "links"
        names = [board.name for board in scenario.boards]
        self.names: Sequence[BoardId] = names
        self.held_back_by = ""
        """Who plays the links: `agents` or `kernel`."""
        plainly = Emulated(speed=1.0, seconds={}, sizes={}, links={}, shared="")
        self._puppets = Puppets(self._text, bundle, folder, dict.fromkeys(names, plainly))

    async def __aenter__(self) -> "Boards":
        Shared.make(self._shared, slots(self._wiring))
        await self._puppets.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._puppets.__aexit__(kind, error, trace)

    def slow(self, rate_bits_per_s: float, how: Stretched | None) -> None:
        """Have all links carry so much, and play the boards so, from now on."""
        paced = rate_bits_per_s < PACED
        self.held_back_by = "agents" if paced else "kernel"
        self._puppets.shape(WIDE if paced else rate_bits_per_s, RTT_S)
        for name in self.names:
            self._puppets.emulate(
                name,
                Emulated(
                    speed=1.0 if how is None else how.speed,
                    seconds={} if how is None else how.seconds,
                    sizes={} if how is None else how.sizes,
                    links=self._ways(name, rate_bits_per_s) if paced else {},
                    shared=str(self._shared),
                ),
            )

    def _ways(self, name: BoardId, rate_bits_per_s: float) -> dict[BoardId, Narrow]:
        """Return what lies between a board and each other; delays are the kernel's."""
        wiring = self._wiring
        for each in self.names:
            wiring = wiring.shaped((each,), Shape(rate_bits_per_s=rate_bits_per_s))
        others = [other for other in self.names if other != name]
        return {other: Narrow(limits=limits(wiring, name, other), delay_s=0.0) for other in others}

    async def run(self, strategy: str, told: Mapping[BoardId, Program]) -> None:
        """Have the boards run these programs from now on."""
        await self._puppets.run(strategy, told, self.names[0])

    async def ask(self, inputs: Mapping[str, Array], times: int) -> list[Answered]:
        """Ask one after the other, from the lead's own board."""
        return (await self._puppets.ask(inputs, times))[0]

    def lose(self, share: float) -> None:
        """Have every link between two boards lose so large a share of its packets from now on."""
        for pair in combinations(self.names, 2):
            self._puppets.place.shape(pair, Shape(loss=share))

    async def watched(self, inputs: Mapping[str, Array]) -> tuple[Answered, list[dict[str, Any]]]:
        """Ask once, and return what all boards did too, as the events of a timeline."""
        return await asyncio.to_thread(self._puppets.watched, inputs)
