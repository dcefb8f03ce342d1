"""Reads a scenario from one TOML file.

    model = "encoder"            # one that the lab makes; or bundle = "FOLDER", or a path to an .onnx
    network.rate = "100mbit"     # of each board's cable
    network.delay = "1ms"        # on each board's cable, one way
    [[board]]
    name = "a"
    speed = 0.2                  # of one core of this machine
    [[board]]
    name = "b"
    speed = 0.1
    [[event]]
    at = 10
    kill = "b"

`docs/lab.md` has all keys.  Whatever is wrong is a ConfigError that names file and line.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NoReturn, TypeVar, get_args

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from shoal.errors import ConfigError
from shoal.lab.lines import Keys, Lines, find_lines
from shoal.lab.quantities import (
    read_choice,
    read_delay,
    read_loss,
    read_memory,
    read_name,
    read_number,
    read_rate,
    read_table,
    read_tables,
    read_text,
    read_whole,
)
from shoal.lab.scenario import (
    Action,
    BoardSpec,
    Event,
    LinkSpec,
    Objective,
    Scenario,
    Shape,
    Strategy,
    Workload,
    over,
)
from shoal.records import BoardId

T = TypeVar("T")

MAX_BOARDS: Final = 20_000
DEFAULT_LOAD_S: Final = 10.0
"""So long is asked after the last event, if the scenario does not say how long."""


def parse(text: str, file: str, kinds: Sequence[str] = ()) -> Scenario:
    """Return the scenario in `text`; `kinds` are the known kinds of board.

    Raises ConfigError, which names `file` and the line.  Whether a bundle or an input file exists is
    looked at by whoever opens them; `Scenario.lines` says where they are named.
    """
    try:
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        number = line[1] if line else max(1, len(text.splitlines()))  # else: at the end of the document
        raise ConfigError(f"{file}:{number}: not TOML: {error}") from error
    return _scenario(_Table(body, (), find_lines(text, file)), file, kinds)


class _Table:
    """A table of the file that is read key by key; what is left at the end is unknown."""

    def __init__(self, body: Mapping[str, Any], path: Keys, lines: Lines) -> None:
        self._left = dict(body)
        self._known: list[str] = []
        self.path = path
        self.lines = lines

    def has(self, key: str) -> bool:
        return key in self._left

    def refuse(self, key: str, expected: str, got: object) -> NoReturn:
        where = self.lines.where((*self.path, key))
        raise ConfigError(f"{where}: {key}: expected {expected}, got {got!r:.80}")

    def take(self, key: str, read: Callable[[Any], T], expected: str, default: T) -> T:
        """Return the value of `key`; `read` raises ValueError or TypeError if it is not as expected."""
        self._known.append(key)
        if key not in self._left:
            return default
        value = self._left.pop(key)
        try:
            return read(value)
        except (ValueError, TypeError, OverflowError):
            self.refuse(key, expected, value)

    def need(self, key: str, read: Callable[[Any], T], expected: str) -> T:
        """Return the value of `key`, which must be there."""
        if key not in self._left:
            raise ConfigError(f"{self.lines.where(self.path)}: {key}: expected {expected}, got nothing")
        value = self._left.pop(key)
        self._known.append(key)
        try:
            return read(value)
        except (ValueError, TypeError, OverflowError):
            self.refuse(key, expected, value)

    def table(self, key: str) -> "_Table":
        nothing: dict[str, Any] = {}
        value = self.take(key, read_table, "a table", nothing)
        return _Table(value, (*self.path, key), self.lines)

    def tables(self, key: str) -> list["_Table"]:
        nothing: list[dict[str, Any]] = []
        values = self.take(key, read_tables, f"tables, each under [[{key}]]", nothing)
        return [_Table(value, (*self.path, key, i), self.lines) for i, value in enumerate(values)]

    def end(self) -> None:
        """Raise ConfigError if a key was not asked for."""
        for key in self._left:
            where = self.lines.where((*self.path, key))
            raise ConfigError(f"{where}: unknown key {key!r}; known here: {', '.join(sorted(self._known))}")


def _scenario(top: _Table, file: str, kinds: Sequence[str]) -> Scenario:
    name = top.take("name", read_name, _NAME, file.rsplit("/", 1)[-1].removesuffix(".toml") or "scenario")
    network = top.table("network")
    common, air = _shape(network), network.take("air", read_rate, _RATE, None)
    network.end()
    boards: list[BoardSpec] = []
    for table in top.tables("board"):
        boards += _boards(table, common, kinds, {board.name for board in boards})
    if not boards:
        raise ConfigError(f"{file}:1: board: expected one [[board]] or more, got none")
    names = {board.name for board in boards}
    links: list[LinkSpec] = []
    for table in top.tables("link"):
        between = _pair(table, "between", names)
        if any(set(link.between) == set(between) for link in links):
            table.refuse("between", "each link once", "-".join(between))
        links.append(LinkSpec(between=between, shape=_shape(table)))
        table.end()
    tables = enumerate(top.tables("event"))
    found = (replace(_event(t, names, air is not None), number=number) for number, t in tables)
    events = sorted(found, key=lambda event: event.at_s)
    coming = {board for event in events if event.action == "join" for board in event.boards}
    last_s = events[-1].at_s if events else 0.0
    if top.has("model") and top.has("bundle"):
        top.refuse("bundle", "a model or a bundle", "both")
    workload = _workload(top.table("workload"))
    scenario = Scenario(
        name=name,
        seed=top.take("seed", read_whole(0), "a whole number of 0 or more", 0),
        duration_s=top.take("duration", read_number(0.1), "seconds, 0.1 or more", last_s + DEFAULT_LOAD_S),
        model=top.take("model", read_text, "the name or path of a model", "encoder"),
        bundle=top.take("bundle", read_text, "a folder", ""),
        objective=top.take("objective", read_choice(_OBJECTIVES), f"one of {list(_OBJECTIVES)}", "latency"),
        max_boards=top.take("max_boards", read_whole(0), "a whole number of 0 or more", 0),
        max_error=top.take("max_error", read_number(0.0, 1.0), "a share of 0 to 1", 0.0),
        max_accuracy_loss=top.take("max_accuracy_loss", read_number(0.0, 1.0), "a share of 0 to 1", 0.0),
        margin=top.take("margin", read_number(0.0), "a share of 0 or more", 0.1),
        dwell_s=top.take("dwell", read_number(0.0), "seconds, 0 or more", 5.0),
        broker=top.take("broker", read_choice(_BROKERS), f"one of {list(_BROKERS)}", "mosquitto"),
        baseline_s=top.take("baseline", read_number(0.0), "seconds, 0 or more", 6.0),
        baselines=top.take("baselines", _read_strategies, f"some of {list(_STRATEGIES)}, each once", ()),
        air_bits_per_s=air,
        boards=tuple(replace(board, joins=board.name in coming) for board in boards),
        links=tuple(links),
        workload=workload,
        events=tuple(events),
        lines=top.lines,
    )
    if scenario.duration_s <= last_s:
        top.refuse("duration", f"more than the last event's {last_s:g} s", scenario.duration_s)
    if all(board.joins for board in scenario.boards):
        raise ConfigError(f"{top.lines.where(('board',))}: expected a board that is there from the start")
    top.end()
    return scenario


_OBJECTIVES: Final[tuple[Objective, ...]] = ("latency", "throughput")
_BROKERS: Final[tuple[Literal["mosquitto", "embedded"], ...]] = ("mosquitto", "embedded")
_STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)
_ARCHES: Final[tuple[Literal["arm64"], ...]] = ("arm64",)
_NAME: Final = "letters, digits, '.', '_' or '-'"
_RATE: Final = 'a rate like "5mbit"'
_SPEED: Final = "a share of one core of this machine, above 0, at most 1"
_MEMORY: Final = 'memory like "512MB"'


def _read_strategies(value: object) -> tuple[Strategy, ...]:
    """Return strategies in the order in which they are named, each once."""
    if not isinstance(value, list):
        raise TypeError(value)
    found = tuple(read_choice(_STRATEGIES)(each) for each in value)
    if len(set(found)) != len(found):
        raise ValueError(value)
    return found


def _boards(table: _Table, common: Shape, kinds: Sequence[str], known: set[BoardId]) -> list[BoardSpec]:
    name = table.need("name", read_name, _NAME)
    count = table.take("count", read_whole(1), "a whole number of 1 or more", 0)
    if len(known) + count > MAX_BOARDS:
        table.refuse("count", f"at most {MAX_BOARDS} boards in all", count)
    kind = table.take("kind", read_choice(kinds), f"one of {list(kinds)}", "")
    names = [BoardId(f"{name}-{number}") for number in range(1, count + 1)] if count else [BoardId(name)]
    twice = known.intersection(names)
    if twice:
        table.refuse("name", "each name once", sorted(twice)[0])
    own = _shape(table)
    board = BoardSpec(
        name=names[0],
        kind=kind,
        speed=table.take("speed", read_number(1e-4, 1.0), _SPEED, None),
        quota=table.take("quota", read_number(0.01, 1024.0), "cores, 0.01 or more", None),
        cores=table.take("cores", read_whole(1), "a whole number of 1 or more", 1),
        memory_bytes=table.take("memory", read_memory, _MEMORY, None),
        memory_limit_bytes=table.take("memory_limit", read_memory, _MEMORY, None),
        arch=table.take("arch", read_choice(_ARCHES), f"one of {list(_ARCHES)}", ""),
        cable=over(common, own),
    )
    table.end()
    return [replace(board, name=each) for each in names]


def _shape(table: _Table) -> Shape:
    return Shape(
        rate_bits_per_s=table.take("rate", read_rate, _RATE, None),
        delay_s=table.take("delay", read_delay, 'a delay like "2ms"', None),
        loss=table.take("loss", read_loss, 'a loss like "1%", below 50 %', None),
    )


def _workload(table: _Table) -> Workload:
    if table.has("clients") and table.has("rate"):
        table.refuse("rate", "clients (closed loop) or a rate (open loop)", "both")
    found = Workload(
        clients=table.take("clients", read_whole(1), "a whole number of 1 or more", 1),
        rate_per_s=table.take("rate", read_number(1e-3), "requests a second, above 0", None),
        batch=table.take("batch", read_whole(1), "a whole number of 1 or more", 1),
        tokens=table.take("tokens", read_whole(1), "a whole number of 1 or more", None),
        inputs=table.take("inputs", read_text, "an .npz file", ""),
    )
    table.end()
    return found


_ONE_BOARD: Final[tuple[Action, ...]] = ("kill", "restart", "join", "freeze", "thaw")
_MANY_BOARDS: Final[tuple[Action, ...]] = ("partition", "heal")
_SERVICES: Final[tuple[Action, ...]] = ("broker", "coordinator")


def _event(table: _Table, names: set[BoardId], wifi: bool) -> Event:
    at_s = table.need("at", read_number(0.0), "seconds, 0 or more")
    kinds = (*_ONE_BOARD, *_MANY_BOARDS, *_SERVICES, "board", "link", "air")
    said = [kind for kind in kinds if table.has(kind)]
    if len(said) != 1:
        where = table.lines.where(table.path)
        raise ConfigError(f"{where}: event: expected one of {', '.join(kinds)}, got {said or 'none'}")
    kind = said[0]
    event = Event(at_s=at_s, action="shape")
    if kind in _ONE_BOARD or kind in _MANY_BOARDS:
        boards = table.need(kind, _read_boards(names, 1 if kind in _ONE_BOARD else 0), _board_of(names))
        event = Event(at_s=at_s, action=kind, boards=boards)
    elif kind in _SERVICES:
        up = table.need(kind, read_choice(("stop", "start")), "stop or start") == "start"
        event = Event(at_s=at_s, action=kind, up=up)
    elif kind == "board":
        boards = table.need(kind, _read_boards(names, 1), _board_of(names))
        speed = table.take("speed", read_number(1e-4, 1.0), _SPEED, None)
        shape = _shape(table)
        if (speed is None) == (shape == Shape()):
            table.refuse(kind, "either a speed, or a rate, delay or loss with it", "both or none")
        event = Event(at_s=at_s, action="shape", boards=boards, shape=shape)
        if speed is not None:
            event = Event(at_s=at_s, action="speed", boards=boards, speed=speed)
    elif kind == "link":
        event = Event(at_s=at_s, action="shape", boards=_pair(table, kind, names), shape=_shape(table))
    else:
        rate = table.need(kind, read_rate, _RATE)
        if not wifi:
            table.refuse(kind, "an event of the air only where network.air is given", rate)
        event = Event(at_s=at_s, action="shape", shape=Shape(rate_bits_per_s=rate))
    if event.action == "shape" and event.shape == Shape():
        table.refuse(kind, "a rate, delay or loss with it", "none")
    table.end()
    return event


def _pair(table: _Table, key: str, names: set[BoardId]) -> tuple[BoardId, BoardId]:
    def read(value: object) -> tuple[BoardId, BoardId]:
        parts = read_text(value).split("-")
        splits = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
        for one, other in splits:
            if one in names and other in names and one != other:
                return BoardId(one), BoardId(other)
        raise ValueError(value)

    return table.need(key, read, f'two boards like "a-b", of {_few(names)}')


def _board_of(names: set[BoardId]) -> str:
    return f"a board of {_few(names)}"


def _few(names: set[BoardId]) -> str:
    first = sorted(names)[:12]
    return ", ".join(first) + (" ..." if len(names) > len(first) else "")


def _read_boards(names: set[BoardId], count: int) -> Callable[[Any], tuple[BoardId, ...]]:
    """Return a reader of one board, or of several; `count` 0: one or more."""

    def read(value: object) -> tuple[BoardId, ...]:
        found = tuple(BoardId(read_text(each)) for each in (value if isinstance(value, list) else [value]))
        if not found or not names.issuperset(found) or len(set(found)) != len(found):
            raise ValueError(value)
        if count and len(found) != count:
            raise ValueError(value)
        return found

    return read
