"""Scenario files: what they say, and that every mistake is named with its line."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.lab.lines import find_lines
from shoal.lab.scenario import Event, Scenario, Shape
from shoal.lab.scenario_file import parse
from shoal.records import BoardId

TWO = '[[board]]\nname = "a"\n[[board]]\nname = "b"\n'


def test_a_useful_scenario_is_ten_lines() -> None:
    found = parse(
        """network.rate = "100mbit"
network.delay = "1ms"
[[board]]
name = "pi"
count = 3
speed = 0.1
memory = "64MB"
[[event]]
at = 10
kill = "pi-2"
""",
        "ten.toml",
    )
    assert found.name == "ten"
    assert [board.name for board in found.boards] == ["pi-1", "pi-2", "pi-3"]
    assert {board.memory_bytes for board in found.boards} == {64_000_000}
    assert found.boards[0].cable == Shape(rate_bits_per_s=1e8, delay_s=1e-3)
    assert found.events == (Event(at_s=10.0, action="kill", boards=(BoardId("pi-2"),)),)
    assert found.duration_s == 20.0  # ten seconds after the last event


def test_a_board_has_its_own_cable_where_it_says_so() -> None:
    found = parse(
        '[network]\nrate = "1gbit"\ndelay = "2ms"\n[[board]]\nname = "a"\nrate = "10mbit"\nloss = "0.5%"\n',
        "x.toml",
    )
    assert found.boards[0].cable == Shape(rate_bits_per_s=1e7, delay_s=2e-3, loss=0.005)


def test_links_and_events_name_two_boards_even_with_dashes() -> None:
    found = parse(
        '[[board]]\nname = "pi-1"\n[[board]]\nname = "pi-1-b"\n[[link]]\nbetween = "pi-1-pi-1-b"\n'
        'rate = "5mbit"\n[[event]]\nat = 1\nlink = "pi-1-pi-1-b"\nrate = "1mbit"\n',
        "x.toml",
    )
    assert found.links[0].between == ("pi-1", "pi-1-b")
    assert found.events[0].describe() == "link of pi-1 and pi-1-b: 1 Mbit/s"


def test_a_board_that_joins_is_not_there_at_first() -> None:
    found = parse(TWO + '[[event]]\nat = 3\njoin = "b"\n', "x.toml")
    assert [board.joins for board in found.boards] == [False, True]


MISTAKES = {
    'modle = "x"\n' + TWO: (1, "unknown key 'modle'"),
    "seed = -1\n" + TWO: (1, "seed"),
    'baselines = ["magic"]\n' + TWO: (1, "some of ['local'"),
    'baselines = ["local", "local"]\n' + TWO: (1, "each once"),
    'baselines = "local"\n' + TWO: (1, "some of"),
    TWO + "speed = 0\n": (5, "speed"),
    TWO + "speed = 1.5\n": (5, "speed"),
    TWO + 'memory = "12"\n': (5, "memory"),
    TWO + 'memory = "0MB"\n': (5, "memory"),
    TWO + 'loss = "60%"\n': (5, "loss"),
    TWO + 'rate = "fast"\n': (5, "rate"),
    TWO + 'delay = "1 hour"\n': (5, "delay"),
    TWO + 'arch = "sparc"\n': (5, "arch"),
    TWO + 'kind = "abacus"\n': (5, "kind"),
    TWO + 'colour = "red"\n': (5, "unknown key 'colour'"),
    TWO + '[[board]]\nname = "a"\n': (6, "each name once"),
    TWO + '[[board]]\nname = "a/b"\n': (6, "name"),
    TWO + "[[board]]\ncores = 1\n": (5, "name"),
    TWO + '[[event]]\nat = 1\nkill = "c"\n': (7, "a board of a, b, got 'c'"),
    TWO + "[[event]]\nat = 1\n": (5, "expected one of"),
    TWO + '[[event]]\nkill = "a"\n': (5, "at"),
    TWO + '[[event]]\nat = -1\nkill = "a"\n': (6, "at"),
    TWO + '[[event]]\nat = 1\nlink = "a-c"\nrate = "1mbit"\n': (7, "two boards"),
    TWO + '[[event]]\nat = 1\nlink = "a-b"\n': (7, "a rate, delay or loss"),
    TWO + '[[event]]\nat = 1\nair = "1mbit"\n': (7, "network.air"),
    TWO + '[[event]]\nat = 1\nboard = "a"\n': (7, "either a speed"),
    TWO + '[[event]]\nat = 1\nbroker = "maybe"\n': (7, "stop or start"),
    TWO + '[[link]]\nbetween = "a-b"\n[[link]]\nbetween = "b-a"\n': (8, "each link once"),
    TWO + "[workload]\nclients = 1\nrate = 2\n": (7, "clients (closed loop)"),
    TWO + "[workload]\nbatch = 0\n": (6, "batch"),
    'model = "encoder"\nbundle = "x"\n' + TWO: (2, "a model or a bundle"),
    "duration = 3\n" + TWO + '[[event]]\nat = 5\nkill = "a"\n': (1, "more than the last event"),
    TWO + '[[event]]\nat = 1\njoin = "a"\n[[event]]\nat = 1\njoin = "b"\n': (1, "there from the start"),
    "x = [\n": (1, "not TOML"),
    "seed = 1\nseed = 2\n": (2, "not TOML"),
    "seed = 1\n": (1, "one [[board]] or more"),
    "board = 3\n": (1, "tables"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_every_mistake_is_named_with_file_and_line(text: str) -> None:
    line, words = MISTAKES[text]
    with pytest.raises(ConfigError, match=rf"^f\.toml:{line}: .*{re.escape(words)}"):
        parse(text, "f.toml")


def test_lines_are_found_past_values_that_go_on() -> None:
    text = (
        'a = [\n  1, # ]\n  2,\n]\nb = """\nc = 3\n"""\n[t.u]\nd.e = "]"\n[[x]]\n[[x]]\ny = 1\n[x.z]\nq = 2\n'
    )
    found = find_lines(text, "f").by_path
    assert found == {
        ("a",): 1,
        ("b",): 5,
        ("t", "u"): 8,
        ("t", "u", "d", "e"): 9,
        ("x",): 10,
        ("x", 0): 10,
        ("x", 1): 11,
        ("x", 1, "y"): 12,
        ("x", 1, "z"): 13,
        ("x", 1, "z", "q"): 14,
    }


_words = st.text("abcxyz01-_.", min_size=1, max_size=6)
_values = st.one_of(
    st.integers(-3, 10**6).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(['"5mbit"', '"2ms"', '"1%"', '"64MB"', "true", "[]", '["a"]', '"a-b"', '"latency"']),
    _words.map(lambda word: f'"{word}"'),
)
KEYS = (
    *("name", "seed", "duration", "model", "bundle", "objective", "speed", "quota", "cores", "memory"),
    *("arch", "rate", "delay", "loss", "at", "kill", "join", "partition", "broker", "link", "board"),
    *("air", "between", "clients", "batch", "tokens", "count", "max_boards", "nonsense"),
)
_keys = st.sampled_from(KEYS)
_heads = st.sampled_from(["[[board]]", "[[link]]", "[[event]]", "[workload]", "[network]", "# nothing"])
_rows = st.one_of(_heads, st.tuples(_keys, _values).map(" = ".join))


@given(st.lists(_rows, max_size=14))
def test_any_file_is_a_scenario_or_a_mistake_with_a_line(rows: list[str]) -> None:
    try:
        found = parse("\n".join(rows), "f.toml")
    except ConfigError as mistake:
        match = re.match(r"f\.toml:(\d+): ", str(mistake))
        line = int(match[1]) if match else 0
    else:
        check(found)
        line = 1
    assert 1 <= line <= max(1, len(rows))


def check(found: Scenario) -> None:
    """What holds of every scenario."""
    names = [board.name for board in found.boards]
    assert len(set(names)) == len(names) > 0
    assert {board for event in found.events for board in event.boards} <= set(names)
    assert [event.at_s for event in found.events] == sorted(event.at_s for event in found.events)
    assert all(event.at_s < found.duration_s for event in found.events)
    assert not all(board.joins for board in found.boards)
    assert all(event.describe() for event in found.events)


@given(
    speeds=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=5),
    rate=st.integers(1, 10_000),
    kill=st.integers(0, 4),
    at=st.floats(0, 1000),
)
def test_what_is_written_is_what_is_read(speeds: list[float], rate: int, kill: int, at: float) -> None:
    rows = [f'network.rate = "{rate}mbit"']
    for number, speed in enumerate(speeds):
        rows += ["[[board]]", f'name = "b{number}"', f"speed = {speed!r}"]
    victim = kill % len(speeds)
    rows += ["[[event]]", f"at = {at!r}", f'kill = "b{victim}"']
    found = parse("\n".join(rows), "f.toml")
    check(found)
    assert [board.speed for board in found.boards] == speeds
    assert all(board.cable.rate_bits_per_s == pytest.approx(rate * 1e6) for board in found.boards)
    assert found.events == (Event(at_s=at, action="kill", boards=(BoardId(f"b{victim}"),)),)
