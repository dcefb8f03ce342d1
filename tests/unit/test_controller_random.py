"""Whatever happens to boards, the controller keeps its promises, and finds a plan where there is one.

What must never be is ruled out by `World` after every decision: epochs that go down, a plan in force for
which a board never said in its present life that it is ready, two plans in force at once, boards that are
to hold more than they can, messages that would be ignored or could not be sent.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.coordinator.weigh import Settings
from shoal.manifest import Manifest
from shoal.records import BoardId, Profile, Sha256
from tests import build
from tests.build import A, B, C, D
from tests.unit.test_controller import World

BOARDS = (A, B, C, D)
HASTY = Settings(dwell_s=1.0, settle_s=3.0, prepare_timeout_s=5.0, drain_s=1.0, hold_off_s=4.0)
NEWER, OTHER = build.sha(600), build.sha(700)
MODELS: Mapping[Sha256, Manifest] = {
    build.BUNDLE: build.chain((100, 100, 100), cut_bytes=100),
    NEWER: replace(build.chain((100, 50, 100, 50), cut_bytes=50), golden=build.blob(77)),
    OTHER: build.chain((200, 100), name="other"),
}
ROOMY = 10_000
rooms = [150, 250, ROOMY]

Event = Callable[[World], object]


def profiles_of(board: BoardId, seconds: float, memory_bytes: int, goodput: float) -> dict[Sha256, Profile]:
    links = {peer: build.link(0.01, goodput) for peer in BOARDS if peer != board}
    return {
        bundle: build.profile(manifest, seconds, links=links, memory_bytes=memory_bytes, bundle=bundle)
        for bundle, manifest in MODELS.items()
    }


class Sea(World):
    """A world in which each board measures what is deployed, some time after it hears of that."""

    def __init__(self) -> None:
        super().__init__(MODELS[build.BUNDLE], HASTY, tick_s=0.1)
        self.manifests = dict(MODELS)
        self.known: dict[BoardId, dict[Sha256, Profile]] = {}

    def measure(self, board: BoardId) -> None:
        desired = self.boards[board].desired
        if desired is not None and desired.bundle is not None and self.boards[board].here:
            self.measured(board, self.known[board][desired.bundle.manifest])

    def settle(self, board: BoardId) -> None:
        """Make a board that can hold every model, and does what it is told."""
        if board not in self.boards:
            self.add(board)
        sim = self.boards[board]
        sim.hangs, sim.refuses, sim.prepare_s = False, lambda _plan: False, 0.5
        sim.answers_wrongly = lambda _plan: False
        self.known[board] = profiles_of(board, 0.1, ROOMY, 1e6)
        if not sim.here or sim.profile is None or sim.profile.memory_bytes < ROOMY:
            self.restart(board)
        elif sim.cut_off:
            self.meet_again(board)

    def well(self) -> bool:
        """Say whether a plan is in force whose boards are all ready for it."""
        plan = self.serving
        return (
            plan is not None
            and self.published == plan
            and self.state.deployment is not None
            and plan.bundle == self.state.deployment.bundle.manifest
            and all(
                self.boards[board].speaks
                and self.said[board].committed == plan.epoch
                and self.boards[board].phases.get(plan.epoch) == build.ready(plan.epoch)
                for board in plan.boards
            )
        )


def guarded(board: BoardId, do: Callable[[Sea, BoardId], object]) -> Event:
    def event(world: World) -> None:
        assert isinstance(world, Sea)
        if board in world.boards:
            do(world, board)

    return event


def join(board: BoardId, seconds: float, memory_bytes: int, goodput: float) -> Event:
    def event(world: World) -> None:
        assert isinstance(world, Sea)
        if board not in world.boards:
            world.known[board] = profiles_of(board, seconds, memory_bytes, goodput)
            world.add(board)

    return event


def change(board: BoardId, **values: object) -> Event:
    def event(world: World) -> None:
        for name, value in values.items():
            if board in world.boards:
                setattr(world.boards[board], name, value)

    return event


def slower(world: Sea, board: BoardId, factor: float) -> None:
    if world.boards[board].profile is not None:
        world.slow(board, factor)


def late_words(world: Sea, board: BoardId) -> None:
    """What an earlier life of the board said arrives now."""
    life = world.boards[board].life - 1
    epochs = [build.ready(epoch) for epoch in range(1, 30)]
    for message in (
        build.presence("left", life),
        build.reported(*epochs, life=life),
        build.birth(board, life),
    ):
        world.say(board, message)


def cut_off(world: Sea, board: BoardId) -> None:
    world.say(board, build.presence("lost", world.boards[board].life))
    world.boards[board].cut_off = True


def meet(world: Sea, board: BoardId) -> None:
    if world.boards[board].here:
        world.meet_again(board)


def deploy(bundle: Sha256, objective: str, max_boards: int) -> Event:
    name = MODELS[bundle].name
    wanted = build.deployment(name, bundle, "latency" if objective == "latency" else "throughput", max_boards)
    return lambda world: world.deploy(wanted)


boards = st.sampled_from(BOARDS)
factors = st.sampled_from([0.2, 0.5, 0.95, 1.05, 2.0, 6.0])
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        join,
        boards,
        st.sampled_from([0.1, 0.12, 0.5]),
        st.sampled_from(rooms),
        st.sampled_from([1e3, 1e6]),
    ),
    boards.map(lambda board: guarded(board, Sea.measure)),
    boards.map(lambda board: guarded(board, Sea.measure)),
    st.builds(lambda board, will: guarded(board, lambda w, b: w.kill(b, will=will)), boards, st.booleans()),
    boards.map(lambda board: guarded(board, lambda w, b: w.restart(b))),
    boards.map(lambda board: guarded(board, lambda w, b: w.restart(b, at=build.address_of(b)))),
    boards.map(lambda board: guarded(board, cut_off)),
    boards.map(lambda board: guarded(board, meet)),
    st.builds(lambda board, by: guarded(board, lambda w, b: slower(w, b, by)), boards, factors),
    st.builds(lambda board, hangs: change(board, hangs=hangs), boards, st.booleans()),
    st.builds(
        lambda board, no: change(board, refuses=lambda plan: plan.strategy == no),
        boards,
        st.sampled_from(["local", "pipeline", "replicate", ""]),
    ),
    st.builds(
        lambda board, no: change(board, answers_wrongly=lambda plan: plan.strategy == no),
        boards,
        st.sampled_from(["local", "pipeline", "replicate", ""]),
    ),
    st.builds(lambda board, missing_bytes: change(board, missing_bytes=missing_bytes), boards, st.just(1)),
    st.builds(lambda board, keeps: change(board, keeps=keeps), boards, st.booleans()),
    st.builds(lambda board, s: change(board, prepare_s=s), boards, st.sampled_from([0.1, 2.0])),
    st.builds(
        lambda board, peer: guarded(board, lambda w, b: w.say(b, build.alarm(peer, w.boards[b].life))),
        boards,
        boards,
    ),
    boards.map(lambda board: guarded(board, late_words)),
    st.builds(
        deploy, st.sampled_from(sorted(MODELS)), st.sampled_from(["latency", "throughput"]), st.integers(0, 2)
    ),
    st.just(lambda world: world.deploy(None)),
    st.just(lambda world: world.restart_coordinator()),
    st.integers(0, 5).map(lambda count: lambda world: setattr(world, "dies_after", count)),
)
waits = st.sampled_from([0.0, 0.1, 0.6, 1.5, 3.0, 8.0])


@given(
    story=st.lists(st.tuples(events, waits), min_size=5, max_size=25),
    room=st.sampled_from(rooms),
    spared=boards,
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_promises_are_kept_and_a_plan_is_found_in_time(
    story: list[tuple[Event, float]], room: int, spared: BoardId
) -> None:
    world = Sea()
    for board in BOARDS[:3]:
        join(board, 0.1, room, 1e6)(world)
    world.deploy(build.deployment())
    world.run(0.2)
    for board in BOARDS[:3]:
        world.measure(board)
    for event, wait_s in story:
        event(world)
        world.run(wait_s)
    world.settle(spared)
    if world.state.deployment is None:
        world.deploy(build.deployment())
    world.run(0.5)
    world.measure(spared)
    for sim in world.boards.values():
        sim.keeps = False
    world.until(world.well, 150)
    before = len(world.plans)
    world.run(5)
    assert world.well() or len(world.plans) > before


def test_a_story_without_trouble_serves_at_once() -> None:
    world = Sea()
    world.add(A)
    world.known[A] = profiles_of(A, 0.1, ROOMY, 1e6)
    world.deploy(build.deployment())
    world.run(0.2)
    world.measure(A)
    assert world.until(world.well, 5) < 1
    assert replace(HASTY, settle_s=15.0) == replace(world.settings, settle_s=15.0)
