"""Divided programs over sockets in rough weather: frames late, cut off or lost, and who connects first."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
import pytest

from shoal.agent import dispatch
from shoal.agent.dispatch import Dispatcher, Question
from shoal.agent.trace import Trace
from shoal.coordinator.partition import Stage
from shoal.coordinator.pipelines import chained
from shoal.errors import BoardError
from shoal.manifest import Manifest
from shoal.messages import Telemetry
from shoal.records import Array, BoardId
from shoal.session import open_session
from shoal.sharding import programs
from tests.connections import PATIENCE_S, Mishap, Way, Weather
from tests.contract.test_shardings import Cluster, question

A, B, C = BOARDS = tuple(BoardId(name) for name in ("a", "b", "c"))
SHARES = (0.25, 0.5, 0.25)


class Boards:
    """A cluster in some weather, and the model that it answers for."""

    def __init__(self, weather: Weather, model: Path, cluster: Cluster) -> None:
        self.weather, self.cluster = weather, cluster
        self._original = open_session(model)

    def ask(self, seed: int = 0, trace: Trace | None = None) -> None:
        """Ask one request, and see that the answer is right.  Raises BoardError if there is none."""
        asked = question(1 + seed % 2, 12 + seed, seed)
        self.check(asked, self.cluster.ask(asked, self._original.outputs, trace=trace))

    def check(self, asked: dict[str, Array], got: dict[str, Array]) -> None:
        for name, want in self._original.run(asked).items():
            assert np.allclose(got[name], want, atol=1e-5)

    def retried(self) -> None:
        """Ask until there is an answer: who learns late of a closed connection may end the next request too.

        Who has closed it knows when its reader has come to the end; until then it sends nothing to that peer.
        """
        until_s = time.monotonic() + PATIENCE_S
        while self._broken() and time.monotonic() < until_s:
            time.sleep(0.001)
        failures = []
        for _ in range(len(BOARDS)):
            try:
                self.ask()
                return
            except BoardError as error:
                failures.append(str(error))
        raise AssertionError(f"expected an answer in the end, got {failures}")

    def _broken(self) -> bool:
        boards = self.cluster.boards.values()
        return any(each.broken for board in boards for each in [*board.peers._outgoing.values()])

    def frames(self) -> list[tuple[Way, int]]:
        """Return who hands what to whom in a request: the ways, and the tags of the exchanges."""
        trace = Trace()
        self.ask(trace=trace)
        marks = trace.whole(5.0)
        assert set(marks) == set(BOARDS)
        sent = ((board, mark) for board in BOARDS for mark in marks[board] if mark.what == "send")
        return [((board, mark.peer), int(mark.name.split()[1])) for board, mark in sent]


Raised = Callable[[Weather], Boards]


@pytest.fixture(params=["sequence", "tensor"])
def raised(
    request: pytest.FixtureRequest, bundle: tuple[Path, Path, Manifest], tmp_path: Path
) -> Iterator[Raised]:
    """Return what makes a cluster in some weather, of which tokens or heads are divided."""
    model, depot, manifest = bundle
    sharding = next(each for each in manifest.shardings if each.name == request.param)
    made: list[Cluster] = []

    def make(weather: Weather) -> Boards:
        told = programs(sharding, BOARDS, A, SHARES)
        made.append(Cluster(tmp_path, depot, manifest, told, weather.connected))
        return Boards(weather, model, made[-1])

    yield make
    for cluster in made:
        cluster.stop()


def test_frames_that_are_late_change_no_answer(raised: Raised) -> None:
    """Several requests are under way, so that boards are ahead of others in some and behind in others."""
    rough = raised(Weather(1, 2e-3))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(rough.ask, range(12)))
    assert rough.cluster.settled()


@pytest.mark.parametrize(("board", "early"), [(B, C), (C, B)])
def test_an_attempt_begins_with_whoever_comes_first(board: BoardId, early: BoardId, raised: Raised) -> None:
    """The connection of the lead, which hands out the rows, is the last to come up."""
    rough = raised(Weather())
    rough.weather.hold((A, board), until=(early, board))
    rough.ask()
    came = [source for source, taker in rough.weather.heard if taker == board]
    assert came[0] == early
    assert rough.cluster.settled()
    rough.ask()
    admission = rough.cluster.boards[board].peers.admission
    assert (admission.late, admission.foreign) == (0, 0)


def test_a_frame_that_is_cut_off_or_lost_ends_the_attempt_and_the_next_is_answered(raised: Raised) -> None:
    """Each frame of the program in its turn; not at the attempt's deadline, of which other words are said."""
    rough, shares = raised(Weather()), cycle((0.0, 0.02, 0.5, 0.999))
    frames = rough.frames()
    assert len({way for way, _ in frames}) == len(BOARDS) * (len(BOARDS) - 1), (
        "all hand one another something"
    )
    for (source, target), tag in frames:
        rough.weather.next = Mishap(way=(source, target), tag=tag, share=next(shares))
        with pytest.raises(BoardError, match=rf"(exchange with|what was sent to) ({source}|{target})\b"):
            rough.ask()
        assert rough.weather.next is None
        assert rough.cluster.settled(), f"something is left of the attempt of which {source} lost {tag}"
        rough.retried()
    assert rough.cluster.settled()


def test_whoever_waits_for_what_a_lost_message_was_to_become_is_told(
    bundle: tuple[Path, Path, Manifest], tmp_path: Path
) -> None:
    """The board in between never heard of the request, and the one before it has done its part."""
    model, depot, manifest = bundle
    cuts = (0, 1, 2, len(manifest.segments))
    parts = [Stage(board=0, start=start, stop=stop) for start, stop in pairwise(cuts)]
    stages = list(zip((A, C, B), parts, strict=True))
    weather = Weather()
    cluster = Cluster(tmp_path, depot, manifest, dict(chained(manifest, stages)), weather.connected)
    try:
        rough = Boards(weather, model, cluster)
        rough.ask()
        weather.next = Mishap(way=(C, B), tag=1, share=0.0)
        with pytest.raises(BoardError, match="what was sent to b is lost"):
            rough.ask()
        assert cluster.settled()
        rough.retried()
    finally:
        cluster.stop()


async def no_resort(_manifest: Manifest, _inputs: Mapping[str, Array]) -> dict[str, Array]:
    raise BoardError("no board has room for all of it")


def test_the_lead_tries_again_until_there_is_an_answer(
    raised: Raised, bundle: tuple[Path, Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several requests at once, while frames are late and now and then one is cut off."""
    monkeypatch.setattr(dispatch, "BARRED_S", 0.02)  # there is but one lane
    weather, chance = Weather(5, 1e-3), random.Random(5)
    rough = raised(weather)
    frames, plan = rough.frames(), rough.cluster.plan
    dispatcher = Dispatcher(A, rough.cluster.boards[A].executor, no_resort)

    async def ask(seed: int) -> None:
        asked = question(1, 12 + seed, seed)
        way, tag = frames[chance.randrange(len(frames))]
        weather.next = weather.next or Mishap(way=way, tag=tag, share=chance.random())
        patience_s = time.monotonic() + 20
        rough.check(
            asked, await dispatcher.infer(Question(bundle=plan.bundle, inputs=asked, patience_s=patience_s))
        )

    async def run() -> Telemetry | None:
        await dispatcher.serve(plan, bundle[2])
        for begin in range(0, 24, 3):
            await asyncio.gather(*(ask(begin + number) for number in range(3)))
        return dispatcher.telemetry(1)

    told = asyncio.run(run())
    assert told is not None
    assert (told.asked, told.answered, told.failed) == (24, 24, 0)
    assert told.retried >= 8, "a mishap ends one attempt or more"
    assert weather.next is None
    assert rough.cluster.settled()
