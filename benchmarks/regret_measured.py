"""The cells of `benchmarks.regret` in the lab: agents with a speed each, on a shaped network, plans in turns.

Each cell is a run by itself.  Boards have the bundle on their disks; they profile, and look more closely
while they idle.  A coordinator chooses, and requests are asked without pause, so that it hears what its plan
takes as it would in service.  Chosen is what it has stayed with for some seconds of that.  Then plans are put
in force in its place, in turns, and asked from the lead's own board.
"""

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import aiohttp

from benchmarks.puppets import answered, link_to
from benchmarks.regret import CODECS, Cell, Tried, row
from shoal.coordinator import client
from shoal.coordinator.cost import Profiles
from shoal.coordinator.planner import Candidate, explore
from shoal.coordinator.question import Question
from shoal.errors import ShoalError
from shoal.lab import namespaces, subject
from shoal.lab.calibration import Calibration
from shoal.lab.fixed import plan_of
from shoal.lab.load import running
from shoal.lab.places import InNamespaces
from shoal.lab.rig import Rig
from shoal.lab.scenario_file import parse
from shoal.lab.standin import StandIn
from shoal.lab.subject import Subject
from shoal.manifest import Manifest
from shoal.messages import NO_LIMITS, Birth, Decision, Deployment
from shoal.program import Plan, serving, shape_of
from shoal.records import Address, BoardId, Profile
from shoal.store import Store

CORES = 0.8
"""What all boards of a cell ask of this machine together, and no board for more than `FASTEST`."""
FASTEST = 0.4
CALM_S = 6.0
"""Boards have looked more closely at what they profiled once none has told anything new for so long, ..."""
LONGEST_CALM_S = 40.0
"""... or after so long: links may always be a little different."""
SETTLED_S = 10.0
"""What a coordinator has chosen is the plan that it has stayed with for so long while requests were asked."""
WEIGHED_S = 1.0
"""A coordinator has weighed a new profile after so long."""
PATIENCE_S = 90.0
"""So long it is waited for a plan that would be better, but that another switch must not come as soon, and
for a moment in which no profile is newer than the decision."""
LONGEST_ASKED_S = 150.0
WAIT_S = 60.0
AGAIN_S = 0.1
"""Where nothing answers it is asked again after so long."""
MOST = 8
"""So many plans are tried: those that are predicted to be the best, and the best single board."""
WORTH = 2.0
"""Plans that are predicted to take so many times the best are not tried."""
ROUNDS = 2
FEWEST, MOST_ASKED, ASKED_S = 3, 8, 0.5
"""Requests in a turn: as many as take about so long."""


def tried(cells: Sequence[Cell]) -> Iterator[dict[str, object]]:
    """Yield the rows of cells."""
    reason = namespaces.why_not()
    if reason or not namespaces.is_root():
        print(f"nothing is measured: {reason or 'that needs root'}")
        return
    known: dict[tuple[str, int, int], tuple[Subject, Calibration]] = {}
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        for number, cell in enumerate(cells):
            asked = (cell.model, cell.batch, cell.tokens)
            if asked not in known:
                place = folder / f"model-{len(known)}"
                place.mkdir()
                about = subject.prepare(parse(text_of(cell), "regret.toml"), place)
                known[asked] = about, subject.calibrate(about)
            about, calibration = known[asked]
            place = folder / str(number)
            place.mkdir()
            begun_s = time.monotonic()
            try:
                found = measured(cell, about, calibration, place)
            except ShoalError as error:  # kept out, so that the next run tries it again
                print(f"{cell}: {error}")
                continue
            yield {**found, "took_s": time.monotonic() - begun_s}


def text_of(cell: Cell) -> str:
    """Return the scenario of a cell."""
    scale = min(FASTEST / max(cell.paces), CORES / sum(cell.paces))
    text = (
        f'model = "{cell.model}"\nworkload.batch = {cell.batch}\nworkload.tokens = {cell.tokens}\n'
        f'network.rate = "{cell.rate_mbit:g}mbit"\nnetwork.delay = "{cell.rtt_ms / 4:g}ms"\n'
    )
    for number, pace in enumerate(cell.paces, start=1):
        text += f'[[board]]\nname = "pi-{number}"\nspeed = {pace * scale:.4f}\n'
    return text


def measured(cell: Cell, about: Subject, calibration: Calibration, folder: Path) -> dict[str, object]:
    """Run a cell, and return its row."""
    scenario = parse(text_of(cell), "regret.toml")
    with InNamespaces(scenario, []) as place:
        place.check(lambda _line: None)
        for board in scenario.boards:
            stock(about, folder / board.name)
        with Rig(scenario, folder, place, about, calibration, None) as rig:
            return asyncio.run(Run(cell, about, place, rig).play())


def stock(about: Subject, folder: Path) -> None:
    """Put the bundle on a board's disk: over narrow links that would take longer than all the rest."""
    store = Store(folder)
    store.put((about.bundle / "manifest.json").read_bytes())
    for segment in about.manifest.by_name.values():
        store.put((about.bundle / f"{segment.name}.onnx").read_bytes())
    for blob in (about.bundle / "blobs").iterdir():
        with contextlib.suppress(FileExistsError):
            os.link(blob, store.path(blob.name))  # type: ignore[arg-type]


class Run:
    """One cell while it runs."""

    def __init__(self, cell: Cell, about: Subject, place: InNamespaces, rig: Rig) -> None:
        self._cell, self._about, self._place, self._rig = cell, about, place, rig
        self._operator: client.Operator
        self._heard_s = 0.0
        """When a board told a profile last."""

    async def play(self) -> dict[str, object]:
        """Have a plan chosen, try all that are worth it in turns, and return the row."""
        async with (
            client.Operator(self._rig.url, "default") as operator,
            aiohttp.ClientSession() as http,
            running(self._listen(operator)),
        ):
            self._operator, view = operator, operator.view
            await self._until("every board", lambda: len(view.alive) == self._cell.boards)
            while view.coordinator is None:
                await asyncio.sleep(0.05)
            source = await client.upload(http, client.coordinator_url(view), self._about.bundle)
            max_error = 0.004
            deployment = Deployment(
                bundle=source, objective="latency", limits=NO_LIMITS, max_boards=0, max_error=max_error
            )
            await operator.publish(deployment)
            await self._until("a plan", lambda: view.plan is not None)
            await self._until("profiles", self._profiled)
            until_s = time.monotonic() + LONGEST_CALM_S
            while time.monotonic() < min(until_s, self._heard_s + CALM_S):
                await asyncio.sleep(0.1)
            own = await self._stayed_with()
            decision, profiles = view.cluster.get(Decision), self._profiles()
            assert isinstance(decision, Decision)
            self._rig.serve_coordinator(up=False)
            plans = candidates(self._about.manifest, profiles, own)
            births = {board: said[Birth] for board, said in view.boards.items() if Birth in said}
            addresses = {board: birth.address for board, birth in births.items() if isinstance(birth, Birth)}
            async with StandIn(self._rig.url, view, partial(self._until, timeout_s=WAIT_S)) as stand:
                seconds = await self._turns(stand, plans, addresses, own)
        every = [Tried(plan=each, seconds=s) for each, s in zip(plans, seconds, strict=True)]
        return {
            **row(self._cell, measured=True, chosen=every[0], every=every),
            "reason": decision.reason,
            "slower": {each.strategy: each.factor for each in decision.slower},
            "every": [each.words for each in every],
        }

    async def _stayed_with(self) -> Plan:
        """Ask requests until the coordinator has stayed with a plan for long enough, and return that."""
        plan = self._operator.view.plan
        begun_s = since_s = time.monotonic()
        while True:
            now_s, newest = time.monotonic(), self._operator.view.plan
            if now_s - begun_s > LONGEST_ASKED_S:
                raise ShoalError(f"no plan stayed in force for {SETTLED_S:.0f} s")
            if newest is None:  # the old one is put down before the new one comes
                plan, since_s = None, now_s
                await asyncio.sleep(AGAIN_S)
                continue
            patient = now_s - begun_s < PATIENCE_S
            if plan is None or newest.epoch != plan.epoch or not self._settled(patient=patient):
                plan, since_s = newest, now_s
            weighed = now_s - self._heard_s >= WEIGHED_S
            if now_s - since_s >= SETTLED_S and (weighed or not patient):
                return newest
            try:
                await asyncio.to_thread(self._ask, newest)
            except (ShoalError, OSError):  # the plan was left meanwhile
                await asyncio.sleep(AGAIN_S)

    async def _turns(
        self, stand: StandIn, plans: Sequence[Candidate], addresses: Mapping[BoardId, Address], own: Plan
    ) -> list[float]:
        """Return the median seconds of a request with each plan, asked in turns."""
        taken: list[list[float]] = [[] for _ in plans]
        for _ in range(ROUNDS):
            for candidate, seconds in zip(plans, taken, strict=True):
                there = {board: addresses[board] for board in candidate.boards}
                plan = await stand.put_in_force(plan_of(candidate, there, own))
                seconds += await asyncio.to_thread(self._ask, plan)
        return [statistics.median(seconds) for seconds in taken]

    def _ask(self, plan: Plan) -> list[float]:
        """Ask the lead from its own board, once to warm up and then some times more."""
        link = link_to(self._place, plan)
        inputs, model = self._about.inputs[0], self._about.manifest.name
        first_s = answered(link, model, inputs).seconds
        count = max(FEWEST, min(MOST_ASKED, round(ASKED_S / first_s)))
        found = [answered(link, model, inputs).seconds for _ in range(count)]
        link.close()
        return found

    async def _listen(self, operator: client.Operator) -> None:
        while True:
            told = await operator.next(0.1)
            if told is not None and isinstance(told[1], Profile):
                self._heard_s = time.monotonic()

    def _profiles(self) -> dict[BoardId, Profile]:
        said = self._operator.view.boards
        return {
            board: found for board, each in said.items() if isinstance(found := each.get(Profile), Profile)
        }

    def _profiled(self) -> bool:
        """Say whether all boards have told what their segments and all their links are like."""
        known = self._profiles().values()
        others = self._cell.boards - 1
        return len(known) == self._cell.boards and all(
            len(each.links) == others and (others == 0 or bool(each.laws)) for each in known
        )

    def _settled(self, *, patient: bool) -> bool:
        """Say whether no other plan is on its way; `patient`: nor another one to be once its time comes."""
        plan, decision = self._operator.view.plan, self._operator.view.cluster.get(Decision)
        if plan is None or not isinstance(decision, Decision):
            return False
        hesitates = "the last switch was less than" in decision.reason
        return not decision.wanted and decision.epoch == plan.epoch and not (patient and hesitates)

    async def _until(self, what: str, holds: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        until_s = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > until_s:
                raise ShoalError(f"no {what} within {timeout_s:.0f} s")
            self._rig.check()
            await asyncio.sleep(0.02)


def candidates(manifest: Manifest, profiles: Profiles, own: Plan) -> list[Candidate]:
    """Return the plan in force, then the best single board, then what else is worth trying, best first."""
    question = Question(
        manifest=manifest,
        profiles=profiles,
        barred=frozenset(),
        objective="latency",
        max_boards=0,
        recipes=CODECS,
    )
    # Priced anew: boards have looked more closely since it was chosen.
    predicted = question.predict(own.lead, own.lanes)
    chosen = Candidate(strategy=own.strategy, lead=own.lead, lanes=own.lanes, predicted=predicted)
    every = explore(question)
    every.sort(key=lambda each: each.predicted.latency_s)
    local = next(each for each in every if each.strategy == "local")
    found = {shape(manifest, chosen): chosen}
    found.setdefault(shape(manifest, local), local)
    sorts = set()
    for each in every:
        sort = each.strategy, len(each.boards), each.chunks
        worth = each.predicted.latency_s <= WORTH * every[0].predicted.latency_s
        if worth and sort not in sorts and len(found) < MOST:
            sorts.add(sort)
            found.setdefault(shape(manifest, each), each)
    return list(found.values())


def shape(manifest: Manifest, candidate: Candidate) -> tuple[object, ...]:
    """Return what makes two plans the same for a request of the sample's size."""
    lanes = [candidate.lanes[index] for index in serving(candidate.lanes, manifest.sample_sizes)]
    return shape_of(None, candidate.strategy, candidate.lead, tuple(lanes))
