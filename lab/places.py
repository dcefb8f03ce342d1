"""Where the processes of a scenario run: in namespaces, or all on loopback where there can be none."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Final, Protocol

from shoal.agent.emulation import Narrow
from shoal.errors import ConfigError, ShoalError
from shoal.lab import meter, namespaces
from shoal.lab.network import network_of
from shoal.lab.processes import free_port
from shoal.lab.quota import Quotas, find_tree
from shoal.lab.scenario import BoardSpec, Scenario, Shape, over
from shoal.lab.shaping import DESK, PAYLOAD_SHARE, Wiring
from shoal.records import BoardId

PORT: Final = 1883
"""Of the broker in a network of its own."""


class Place(Protocol):
    """What a run asks of the place where it runs."""

    how: str
    """In words of the report."""
    notes: list[str]
    desk: str
    """Address of broker and coordinator."""
    port: int
    """Of the broker."""

    def __enter__(self) -> "Place": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def check(self, say: Callable[[str], None]) -> None:
        """Measure what was asked of the network; ShoalError if it is something else."""
        ...

    def address(self, board: BoardId) -> str:
        """Return where the board listens."""
        ...

    def enter(self, board: BoardId) -> Callable[[], None] | None:
        """Return what a process of the board does first."""
        ...

    def narrow(self, board: BoardId) -> Mapping[BoardId, Narrow]:
        """Return what the agent itself must make of its links."""
        ...

    def shape(self, boards: tuple[BoardId, ...], shape: Shape) -> None:
        """Change a cable, a link or the air."""
        ...

    def part(self, boards: frozenset[BoardId]) -> None:
        """Let these reach each other only; none: all reach all."""
        ...

    def sent_bytes(self) -> Mapping[tuple[BoardId, BoardId], int] | None:
        """Return the bytes from host to host; None if nobody counts."""
        ...

    def throttled(self, board: BoardId) -> int:
        """Return in how many periods the board's quota stopped it."""
        ...


def place_for(scenario: Scenario, *, loopback: bool) -> Place:
    """Return the best place that there is here, after looking whether the scenario can run in it.

    Raises ConfigError, with file and line, if it cannot.
    """
    reason = "asked for" if loopback else namespaces.why_not()
    limited = [board for board in scenario.boards if board.quota or board.memory_limit_bytes]
    if limited and (reason or not namespaces.is_root()):
        key = "quota" if limited[0].quota else "memory_limit"
        where = _where(scenario, key)
        why = reason or "we are not root"
        raise ConfigError(
            f"{where}: {key}: the kernel's limits need root and namespaces ({why}); speed and memory do not"
        )
    if not reason:
        if scenario.broker == "embedded":
            where = scenario.lines.where(("broker",))
            raise ConfigError(f"{where}: broker: the embedded one listens on loopback only; use mosquitto")
        return InNamespaces(scenario, limited)
    for event in scenario.events:
        if event.action in ("partition", "heal"):
            where = scenario.lines.where(("event", event.number))
            raise ConfigError(f"{where}: {event.action}: needs namespaces: {reason}")
    shapes = (*(board.cable for board in scenario.boards), *(link.shape for link in scenario.links))
    if any(shape.loss for shape in shapes) or any(event.shape.loss for event in scenario.events):
        raise ConfigError(f"{scenario.lines.where(('board',))}: loss: needs namespaces: {reason}")
    if scenario.air_bits_per_s is not None:
        raise ConfigError(f"{scenario.lines.where(('network', 'air'))}: air: needs namespaces: {reason}")
    return OnLoopback(scenario, reason)


def _where(scenario: Scenario, key: str) -> str:
    tables = [path for path in scenario.lines.by_path if path[:1] == ("board",) and path[2:] == (key,)]
    return scenario.lines.where(tables[0] if tables else ("board",))


class InNamespaces:
    """A namespace for each board, its cables shaped, its processor time limited."""

    def __init__(self, scenario: Scenario, limited: list[BoardSpec]) -> None:
        self._network = network_of(scenario)
        self._held = contextlib.ExitStack()
        self._limited = {board.name: board for board in limited}
        self._quotas: Quotas | None = None
        root = namespaces.is_root()
        self.how = "measured in network namespaces" + ("" if root else " without root")
        self.notes = ["emulated: caches, memory bandwidth, heat and the kernels of ARM are this machine's"]
        if not root:
            self.notes.append("without root the delay line has no priority: on a busy machine only p50 holds")
        self.desk, self.port = self._network.address(DESK), PORT

    def __enter__(self) -> "InNamespaces":
        with contextlib.ExitStack() as held:
            if namespaces.is_root():
                with contextlib.suppress(ConfigError):
                    self._quotas = held.enter_context(Quotas(find_tree()))
            held.enter_context(self._network)  # first: no group of version 1 takes a process with priority
            if self._quotas is not None:
                try:
                    held.enter_context(self._quotas.shelter())
                except ConfigError:  # the tree is there, but may not be written to
                    self._quotas = None
            if self._limited and self._quotas is None:
                raise ConfigError("this kernel has no control groups to limit boards with")
            held.enter_context(self._at_the_desk())
            self._held = held.pop_all()
        return self

    @contextlib.contextmanager
    def _at_the_desk(self) -> Iterator[None]:
        here = namespaces.Namespace.current()
        self._network.hosts[DESK].enter()
        try:
            yield
        finally:
            here.enter()
            here.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def check(self, say: Callable[[str], None]) -> None:
        """Measure with plain sockets."""
        off = []
        for reading in meter.measure(self._network):
            say(f"  {reading.describe()}")
            if not reading.fits:
                off.append(reading.describe())
        if off:
            raise ShoalError(f"the shaping is more than {meter.TOLERANCE:.0%} off: {'; '.join(off)}")

    def address(self, board: BoardId) -> str:
        """Return its address in the lab's network."""
        return self._network.address(board)

    def space(self, board: BoardId) -> namespaces.Namespace:
        """Return the board's namespace."""
        return self._network.hosts[board]

    def enter(self, board: BoardId) -> Callable[[], None]:
        """Return what moves a process to the board: into its limits, then into its namespace."""
        space, spec = self._network.hosts[board], self._limited.get(board)
        if self._quotas is None:
            return space.enter
        limits = (spec.quota, spec.memory_limit_bytes) if spec is not None else (None, None)
        join = self._quotas.limit(board, *limits)

        def both() -> None:
            join()
            space.enter()

        return both

    def narrow(self, _board: BoardId) -> Mapping[BoardId, Narrow]:
        """Return nothing: the network itself is shaped."""
        return {}

    def shape(self, boards: tuple[BoardId, ...], shape: Shape) -> None:
        """Change the network."""
        self._network.shape(boards, shape)

    def part(self, boards: frozenset[BoardId]) -> None:
        """Cut the network in two."""
        self._network.part(boards)

    def sent_bytes(self) -> Mapping[tuple[BoardId, BoardId], int]:
        """Return what the hub counted."""
        return self._network.sent_bytes()

    def throttled(self, board: BoardId) -> int:
        """Ask the board's control group."""
        group = self._quotas.groups.get(board) if self._quotas else None
        return group.throttled() if group else 0


class OnLoopback:
    """Processes on loopback; the agents themselves hold back what they send."""

    def __init__(self, scenario: Scenario, reason: str) -> None:
        names = [board.name for board in scenario.boards]
        self._wiring = Wiring(
            numbers={name: number for number, name in enumerate(names, start=1)},
            cables={board.name: board.cable for board in scenario.boards},
            links={frozenset(link.between): link.shape for link in scenario.links},
        )
        self.how = "measured on loopback"
        self.desk, self.port = "127.0.0.1", free_port()
        self.notes = [
            f"no network namespaces here ({reason}): links are shaped in the agents' transport, requests and "
            "MQTT are not, and bytes are not counted"
        ]

    def __enter__(self) -> "OnLoopback":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def check(self, say: Callable[[str], None]) -> None:
        """Say that there is nothing to measure before the agents are there."""
        say("  links are shaped by the agents, which measure them with the shaping on")

    def address(self, _board: BoardId) -> str:
        """Return loopback."""
        return "127.0.0.1"

    def enter(self, _board: BoardId) -> None:
        """Return nothing to do."""
        return

    def narrow(self, board: BoardId) -> Mapping[BoardId, Narrow]:
        """Return each link's rate and delay; those of a cable count as if each link had it alone."""
        found = {}
        for other in self._wiring.numbers:
            rate = self._wiring.rate(board, other)
            delay_s = self._wiring.delay_s(board, other)
            if other != board and (rate is not None or delay_s):
                bytes_per_s = (rate or 1e11) * PAYLOAD_SHARE / 8
                found[other] = Narrow(bytes_per_s=bytes_per_s, delay_s=delay_s)
        return found

    def shape(self, boards: tuple[BoardId, ...], shape: Shape) -> None:
        """Note the change; the agents hear of it by their files."""
        old = self._wiring
        if len(boards) == 1:
            cables = {**old.cables, boards[0]: over(old.cables[boards[0]], shape)}
            self._wiring = replace(old, cables=cables)
        else:
            pair = frozenset(boards)
            links = {**old.links, pair: over(old.links.get(pair, Shape()), shape)}
            self._wiring = replace(old, links=links)

    def part(self, _boards: frozenset[BoardId]) -> None:
        """Do nothing: such scenarios are refused."""

    def sent_bytes(self) -> None:
        """Return that nobody counts."""
        return

    def throttled(self, _board: BoardId) -> int:
        """Return 0: there is no quota."""
        return 0
