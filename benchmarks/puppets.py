"""Real agents in the lab's network that run what a benchmark tells them, in place of a coordinator.

Broker, agents, namespaces, shaping and quotas are those of `shoal lab run`; only the plan is given.  Every
board has the bundle on its disk beforehand and measures nothing, so that what is timed is the requests.
"""

import asyncio
import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import psutil

from shoal import oip
from shoal.agent.emulation import Settings as Emulated
from shoal.coordinator.broker import BrokerProcess
from shoal.coordinator.client import Operator
from shoal.encoding import to_json
from shoal.errors import ShoalError
from shoal.exporter.bundle import read_manifest
from shoal.lab.places import InNamespaces
from shoal.lab.processes import Process
from shoal.lab.scenario import Shape
from shoal.lab.scenario_file import parse
from shoal.messages import Birth, Desired, Reported
from shoal.program import Lane, Plan, Prediction, Program
from shoal.records import Address, Array, BoardId
from shoal.store import Store

READY_S = 300.0


def scenario(boards: int, quota: float, rate_bits_per_s: float, rtt_s: float) -> str:
    """Return equal boards on a switch."""
    return (
        f'network.rate = "{rate_bits_per_s / 1e6:g}mbit"\nnetwork.delay = "{1e3 * rtt_s / 4:g}ms"\n'
        f'broker = "mosquitto"\n[[board]]\nname = "pi"\ncount = {boards}\nquota = {quota}\n'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One answer, and how long it took the client on the lead board."""

    seconds: float
    tensors: Mapping[str, Array]


def link_to(place: InNamespaces, plan: Plan) -> http.client.HTTPConnection:
    """Return a connection to the lead of a plan, from the lead's own board."""
    address = plan.addresses[plan.lead]
    reach = partial(socket.create_connection, (address.host, address.http_port), READY_S)
    link = http.client.HTTPConnection(address.host, address.http_port)
    link.sock = place.space(plan.lead).inside(reach)
    return link


def answered(
    link: http.client.HTTPConnection, model: str, inputs: Mapping[str, Array], trace: str = ""
) -> Answered:
    """Ask once, noting what boards do in the timeline `trace`.  Raises ShoalError if there is no answer."""
    body, json_length = oip.render_request(inputs)
    begun_s = time.perf_counter()
    link.request(
        "POST",
        f"/v2/models/{model}/infer",
        body,
        {
            oip.JSON_LENGTH: str(json_length),
            "Content-Type": "application/octet-stream",
            **({"Shoal-Trace": trace} if trace else {}),
        },
    )
    answer = link.getresponse()
    content = answer.read()
    taken_s = time.perf_counter() - begun_s
    if answer.status != 200:
        raise ShoalError(f"{answer.status}: {content[:300]!r}")
    tensors = oip.parse_response(content, int(answer.headers[oip.JSON_LENGTH]))
    return Answered(seconds=taken_s, tensors=tensors)


class Puppets:
    """The agents of a scenario; an async context manager.  Needs root."""

    def __init__(
        self,
        text: str,
        bundle: Path,
        folder: Path,
        emulated: Mapping[BoardId, Emulated] = MappingProxyType({}),
    ) -> None:
        """`emulated` says of boards how slow they are to be; see `emulate`."""
        self._scenario = parse(text, "benchmark.toml")
        self.place = InNamespaces(self._scenario, [b for b in self._scenario.boards if b.quota])
        self.boards = tuple(board.name for board in self._scenario.boards)
        self.processes: dict[BoardId, Process] = {}
        self._bundle, self._folder = bundle, folder
        self._emulated = emulated
        self.manifest = read_manifest(bundle)
        self._epoch = self._version = 0
        self._held = contextlib.AsyncExitStack()
        self._operator: Operator

    async def __aenter__(self) -> "Puppets":
        """Start broker and agents; return once all are there."""
        async with contextlib.AsyncExitStack() as held:
            held.enter_context(self.place)
            self.place.check(print)
            broker = BrokerProcess.start(
                "mosquitto",
                self.place.port,
                self._folder / "broker",
                bind=self.place.desk,
                log=self._folder / "broker.log",
            )
            held.callback(broker.kill)
            url = f"mqtt://{self.place.desk}:{self.place.port}"
            for board in self.boards:
                self._stock(board)
                command = ["agent", "--broker", url, "--name", board, "--threads", "1", "--memory", "4000"]
                command += ["--host", self.place.address(board), "--state-dir", str(self._folder / board)]
                if board in self._emulated:
                    self.emulate(board, self._emulated[board])
                    command += ["--emulate", str(self._folder / f"{board}.json")]
                self.processes[board] = Process(
                    command, self._folder / f"{board}.log", self.place.enter(board)
                )
                held.callback(self.processes[board].kill)
            self._operator = await held.enter_async_context(Operator(url, "default"))
            await self._until(
                "boards", lambda: all(self._said(board, Birth) is not None for board in self.boards)
            )
            self._held = held.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.aclose()

    def _stock(self, board: BoardId) -> None:
        """Put the bundle on the board's disk."""
        store = Store(self._folder / board)
        digest = store.put((self._bundle / "manifest.json").read_bytes()).sha256
        self.digest = digest
        for segment in self.manifest.by_name.values():
            store.put((self._bundle / f"{segment.name}.onnx").read_bytes())
        for blob in (self._bundle / "blobs").iterdir():
            with contextlib.suppress(FileExistsError):
                os.link(blob, store.path(blob.name))  # type: ignore[arg-type]

    def emulate(self, board: BoardId, how: Emulated) -> None:
        """Have a board that was started as an emulated one be as slow as this from now on."""
        file = self._folder / f"{board}.json"
        fresh = file.with_suffix(".new")
        fresh.write_bytes(to_json(how))
        fresh.replace(file)

    def shape(self, rate_bits_per_s: float, rtt_s: float) -> None:
        """Give all cables another rate and delay."""
        for board in self.boards:
            self.place.shape((board,), Shape(rate_bits_per_s=rate_bits_per_s, delay_s=rtt_s / 4))

    async def run(self, strategy: str, programs: Mapping[BoardId, Program], lead: BoardId) -> None:
        """Have the boards run these programs from now on."""
        self._epoch += 1
        addresses: dict[BoardId, Address] = {}
        for board in programs:
            said = self._said(board, Birth)
            assert isinstance(said, Birth)
            addresses[board] = said.address
        self.plan = Plan(
            epoch=self._epoch,
            bundle=self.digest,
            model=self.manifest.name,
            strategy=strategy,
            lead=lead,
            lanes=(Lane(programs=programs, weight=1.0),),
            addresses=addresses,
            predicted=Prediction(latency_s=60.0, throughput_per_s=1.0),
            reason="a benchmark",
        )
        await self._tell(self.plan, committed=0)
        await self._until("readiness", self._ready)
        await self._tell(self.plan, committed=self._epoch)
        await asyncio.sleep(0.5)

    def cpu_s(self) -> dict[BoardId, float]:
        """Return the processor time that each board's agent has had so far."""
        times = {board: psutil.Process(process.pid).cpu_times() for board, process in self.processes.items()}
        return {board: float(each.user + each.system) for board, each in times.items()}

    def beyond_bytes(self, *, own: bool = False) -> dict[BoardId, int]:
        """Return what is resident of each board's agent beside its plan's weights.

        Its `own` is without pages of files, which the kernel drops when memory is short: code of libraries.
        """
        found = {}
        (lane,) = self.plan.lanes
        for board, program in lane.programs.items():
            segments = {run: self.manifest.by_name[run.segment] for run in program.runs}
            weights = sum(segment.held_bytes(run.part) for run, segment in segments.items())
            taken = psutil.Process(self.processes[board].pid).memory_info()
            found[board] = taken.rss - weights - (taken.shared if own else 0)
        return found

    async def _tell(self, plan: Plan, *, committed: int) -> None:
        for board in self.boards:
            self._version += 1
            desired = Desired(
                coordinator=1,
                version=self._version,
                bundle=None,
                peers={},  # whose links would be measured
                plans=(plan,) if board in plan.boards else (),
                committed=committed,
                proving=0,
                ahead=(),
                precisions=(),
            )
            await self._operator.publish(desired, board)

    async def ask(
        self, inputs: Mapping[str, Array], times: int, clients: int = 1
    ) -> tuple[list[Answered], float]:
        """Ask the lead, from the lead's own board, so many times in all; return answers and seconds."""
        left = iter(range(times))
        begun_s = time.perf_counter()
        found = await asyncio.gather(*(asyncio.to_thread(self._client, inputs, left) for _ in range(clients)))
        return [one for each in found for one in each], time.perf_counter() - begun_s

    async def timeline(self, inputs: Mapping[str, Array]) -> list[dict[str, Any]]:
        """Ask once more and return the trace events of all boards."""
        return (await asyncio.to_thread(self.watched, inputs))[1]

    def watched(self, inputs: Mapping[str, Array]) -> tuple[Answered, list[dict[str, Any]]]:
        """Ask once and return the answer and the trace events of all boards."""
        link = self._link()
        answer = answered(link, self.manifest.name, inputs, "bench")
        link.request("GET", "/traces/bench")
        events: list[dict[str, Any]] = json.loads(link.getresponse().read())["traceEvents"]
        link.close()
        return answer, events

    def _link(self) -> http.client.HTTPConnection:
        """Return a connection to the lead, from the lead's own board."""
        return link_to(self.place, self.plan)

    def _client(self, inputs: Mapping[str, Array], left: Iterator[int]) -> list[Answered]:
        link = self._link()
        found = [answered(link, self.manifest.name, inputs) for _ in left]
        link.close()
        return found

    def _ready(self) -> bool:
        states = []
        for board in self.plan.boards:
            said = self._said(board, Reported)
            mine = [e for e in said.epochs if e.epoch == self._epoch] if isinstance(said, Reported) else []
            if mine and mine[0].phase == "failed":
                raise ShoalError(f"{board}: {mine[0].detail}")
            states.append(bool(mine) and mine[0].phase == "ready")
        return all(states)

    def _said(self, board: BoardId, kind: type) -> object:
        return self._operator.view.boards.get(board, {}).get(kind)

    async def _until(self, what: str, holds: Callable[[], bool]) -> None:
        until_s = time.monotonic() + READY_S
        while not holds():
            await self._operator.next(0.1)
            dead = [board for board, process in self.processes.items() if not process.running]
            if dead or time.monotonic() > until_s:
                raise ShoalError(f"no {what}; ended: {dead}; logs are in {self._folder}")
