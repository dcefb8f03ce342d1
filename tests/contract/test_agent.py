"""How an agent's parts hang together: what one of them notices reaches the other.  No broker is there."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shoal.agent import rest
from shoal.agent.service import Agent, Settings
from shoal.agent.supervisor import Supervisor
from shoal.firmware_configs.boards import detect
from shoal.firmware_configs.sysfs import Tree
from shoal.frames import Header, Kind
from shoal.program import Run
from shoal.records import BoardId
from shoal.vitals import Health, Vitals
from tests.build import A, B, C

WAIT_S = 10.0
HEALTH = Health(
    state="warm",
    temperature_c=70.0,
    capacity=1.0,
    notes=("it is hot",),
    memory_free_bytes=None,
    memory_pressure=None,
    disk_free_bytes=None,
)
VITALS = Vitals(incarnation=1, span_s=60.0, answered=0, busy=0.0, power=None, health=HEALTH)


def with_agent(folder: Path, test: Callable[[Agent], Awaitable[None]]) -> None:
    """Run `test` with an agent that was put together, but does not live yet."""

    async def run() -> None:
        settings = Settings(
            broker="mqtt://127.0.0.1:1",
            cluster="home",
            name=A,
            host="127.0.0.1",
            data_port=0,
            http_port=0,
            state_dir=folder,
            threads=1,
            memory_bytes=1_000_000,
            disk_bytes=None,
            config=detect(Tree()),
            meter=None,
            looking=False,
        )
        async with aiohttp.ClientSession() as http:
            await test(Agent(settings, 1, http, Supervisor({})))

    asyncio.run(run())


def test_frames_that_belong_to_no_request_are_told_with_a_boards_vitals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = Header(kind=Kind.TENSORS, attempt=b"attempt of sixte", epoch=1, tag=1, count=1, length=8)

    async def test(agent: Agent) -> None:
        told: list[tuple[object, BoardId | None]] = []
        monkeypatch.setattr(agent._mqtt, "publish", lambda *said: told.append(said))
        agent._tell_vitals(VITALS)
        agent._peers.inboxes.open(frame.attempt, frozenset({C}), frozenset({(1, C, 0)}))
        assert agent._peers.admission.admit(frame, B) is None
        agent._tell_vitals(VITALS)
        foreign = (*HEALTH.notes, "messages of b that belong to no request here: 1")
        assert told == [(VITALS, A), (replace(VITALS, health=replace(HEALTH, notes=foreign)), A)]

    with_agent(tmp_path, test)


def test_an_agent_gives_memory_back_once_it_has_rested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    given = threading.Event()

    def note(what: str) -> Callable[[], Any]:
        def noted() -> None:
            done.append(what)
            if len(done) == 2:
                given.set()

        return noted

    monkeypatch.setattr(rest, "LOOK_S", 0.01)
    monkeypatch.setattr(rest, "REST_S", 0.02)
    monkeypatch.setattr(rest, "shrink", note("onnxruntime's"))
    monkeypatch.setattr(rest, "give_back", note("the C library's"))

    async def test(agent: Agent) -> None:
        living = asyncio.ensure_future(agent.live())
        agent._ran(Run(segment="s"), {}, 0.1)
        came = await asyncio.to_thread(given.wait, WAIT_S)
        agent._stop.set()
        await living
        assert came
        assert done == ["onnxruntime's", "the C library's"]

    with_agent(tmp_path, test)
