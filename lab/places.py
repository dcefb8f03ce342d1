"""Where the processes of a scenario run: in namespaces, or all on loopback where there can be none."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from shoal.agent.narrow import Narrow
from shoal.errors import ConfigError
from shoal.lab import meter, namespaces
from shoal.lab.loopback import OnLoopback
from shoal.lab.network import network_of
from shoal.lab.quota import Quotas, find_tree
from shoal.lab.scenario import BoardSpec, Scenario, Shape
from shoal.lab.shaping import DESK
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
    shared: str
    """The file that goes with `narrow`; empty: nothing is narrow."""

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


def place_for(scenario: Scenario, folder: Path, *, loopback: bool) -> Place:
    """Return the best place that there is here, after looking whether the scenario can run in it.

    On loopback, links are played by files in `folder`.

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
    _refuse_on_loopback(scenario, reason)
    return OnLoopback(scenario, reason, folder)


def _refuse_on_loopback(scenario: Scenario, reason: str) -> None:
    """Raise ConfigError for what a transport above TCP cannot play."""
    for event in scenario.events:
        where = scenario.lines.where(("event", event.number))
        if event.action in ("partition", "heal"):
            raise ConfigError(
                f"{where}: {event.action}: needs namespaces ({reason}): on loopback a board that is cut off "
                "would still reach broker and clients"
            )
        if event.shape.loss:
            raise ConfigError(f"{where}: {_NO_LOSS.format(reason)}")
    for key, shapes in (
        ("board", [board.cable for board in scenario.boards]),
        ("link", [link.shape for link in scenario.links]),
    ):
        if any(shape.loss for shape in shapes):
            raise ConfigError(f"{scenario.lines.where((key,))}: {_NO_LOSS.format(reason)}")


_NO_LOSS: Final = "loss: needs namespaces ({}): on loopback nothing is lost that TCP could send again"


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
        self.shared = ""
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
        meter.judge(meter.measure(self._network), say)

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
