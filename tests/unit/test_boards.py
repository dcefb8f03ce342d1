"""Boards are told by what they say of themselves, and every file about one is well-formed."""

from pathlib import Path

import pytest

from shoal.errors import ConfigError
from shoal.firmware_configs import boards
from shoal.firmware_configs.sysfs import Tree, Unreadable, Why
from tests.boards import RECORDED, plant, put

WANTED = {
    "jetson-agx-orin",
    "jetson-nano",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-xavier-nx",
    "raspberry-pi-3b-plus",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "raspberry-pi-zero-2-w",
    "rk3588",
    "x86-mini",
}


def text_of(board: str) -> str:
    return (Path(boards.__file__).parent / f"{board}.toml").read_text("utf-8")


@pytest.mark.parametrize("board", boards.known_boards())
def test_every_file_is_well_formed(board: str) -> None:
    found = boards.load(board)
    assert found.id == board
    assert found.seed.idle_w.typical < found.seed.full_w.typical
    assert found.memory.floor_mb / 1e3 < found.memory.usable_gb.typical
    assert len(found.runtime.cores) in (0, found.runtime.threads)
    assert text_of(board).count("#") >= 5, "where its figures come from"


def test_all_boards_are_there_and_recorded() -> None:
    assert set(boards.known_boards()) == WANTED
    assert set(RECORDED) == WANTED | {"unknown"}


@pytest.mark.parametrize("board", sorted(WANTED))
def test_a_board_is_told(board: str, tmp_path: Path) -> None:
    assert boards.detect(plant(tmp_path, board)).id == board


def test_relations_are_told_by_their_chip(tmp_path: Path) -> None:
    tree = plant(tmp_path, "raspberry-pi-5")
    put(tree, "/sys/firmware/devicetree/base/model", "Raspberry Pi Compute Module 5 Rev 1.0")
    assert boards.detect(tree).id == "raspberry-pi-5"
    put(tree, "/sys/firmware/devicetree/base/compatible", "xunlong,orangepi-5\0rockchip,rk3588s")
    put(tree, "/sys/firmware/devicetree/base/model", "Orange Pi 5")
    assert boards.detect(tree).id == "rk3588"


def test_an_unknown_board_is_described_by_what_is_found(tmp_path: Path) -> None:
    found = boards.detect(plant(tmp_path, "unknown"))
    assert (found.id, found.title, found.runtime.threads) == ("unknown", "ACME Roadrunner 7", 2)
    assert [source.kind for source in found.power] == ["meter", "battery", "model"]
    assert found.power[-1].uncertainty >= 1.0, "a guess says that it is one"


@pytest.mark.parametrize(
    ("capacities", "cores"),
    [
        ([414, 414, 414, 414, 1024, 1024, 1024, 1024], (4, 5, 6, 7)),  # Cortex-A55 and A76
        ([1024, 1024, 650, 650, 650, 650, 650, 650, 650, 650], ()),  # many slow ones outweigh two fast
        ([250, 250, 250, 250, 800, 800, 800, 1024], (4, 5, 6, 7)),
        ([1024, 1024, 1024, 1024], ()),
        ([1024, 200], (0,)),
        ([], ()),
    ],
)
def test_an_unknown_board_keeps_to_the_cores_that_are_worth_it(
    capacities: list[int], cores: tuple[int, ...], tmp_path: Path
) -> None:
    tree = plant(tmp_path, "unknown")
    for core, capacity in enumerate(capacities):
        put(tree, f"/sys/devices/system/cpu/cpu{core}/cpu_capacity", capacity)
    runtime = boards.detect(tree).runtime
    assert (runtime.cores, runtime.threads) == (cores, len(cores) or 2)


def test_a_core_that_tells_nothing_is_left_out(tmp_path: Path) -> None:
    tree = plant(tmp_path, "unknown")
    for core, capacity in enumerate(["1024", "fast", "300"]):
        put(tree, f"/sys/devices/system/cpu/cpu{core}/cpu_capacity", capacity)
    assert boards.detect(tree).runtime.cores == (0,)


def test_a_machine_that_says_nothing_at_all_has_a_description(tmp_path: Path) -> None:
    assert [source.kind for source in boards.detect(Tree(tmp_path)).power] == ["meter", "model"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("threads = 4", "threads = 0", "raspberry-pi-5.toml.runtime: threads: expected 1 or more, got 0"),
        (
            "spin_us = 0",
            "spin_us = 5000",
            "raspberry-pi-5.toml.runtime: spin_us: expected 0 to 1000, got 5000",
        ),
        ("threads = 4", 'threads = "4"', 'raspberry-pi-5.toml.runtime.threads: expected int, got "4"'),
        ("threads = 4", "thread = 4", r"raspberry-pi-5.toml.runtime: .*got also \['thread'\]"),
        ("threads = 4\n", "", r"raspberry-pi-5.toml.runtime: .*got no \['threads'\]"),
        ('kind = "model"', 'kind = "guess"', "raspberry-pi-5.toml.power.3..kind: expected one of"),
        ("low = 2.4", "low = 9.9", "raspberry-pi-5.toml.seed.idle_w: expected 0 < low <= typical"),
        ("threads = 4", "threads =", "raspberry-pi-5.toml: expected TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(old: str, new: str, words: str) -> None:
    text = text_of("raspberry-pi-5")
    assert old in text
    with pytest.raises(ConfigError, match=words):
        boards.parse(text.replace(old, new, 1), "raspberry-pi-5.toml")


def test_an_interface_that_is_not_there_may_be_left_out() -> None:
    zero = boards.load("raspberry-pi-zero-2-w")
    assert (zero.network.ethernet_mbit_per_s, zero.seed.gpu) == (None, None)
    assert zero.network.wifi_mbit_per_s is not None


def test_an_unknown_id_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected one of .*'rk3588'.* got '../secrets'"):
        boards.load("../secrets")


def test_why_a_file_tells_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    put(tree, "/sys/negative", -3)
    put(tree, "/sys/empty", "")
    put(tree, "/sys/words", "none")
    tree.at("/sys/folder").mkdir()

    def why(path: str) -> Why:
        with pytest.raises(Unreadable) as caught:
            tree.natural(path)
        assert path in str(caught.value)
        return caught.value.why

    assert why("/sys/negative") is Why.NEGATIVE
    assert why("/sys/empty") is Why.EMPTY
    assert why("/sys/words") is Why.BROKEN
    assert why("/sys/folder") is Why.BROKEN
    assert why("/sys/gone") is Why.MISSING
    assert tree.whole("/sys/negative") == -3


def test_names_are_sorted_as_people_count(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for number in (10, 9, 1):
        put(tree, f"/sys/class/hwmon/hwmon{number}/name", "x")
    assert [path[-2:] for path in tree.find("/sys/class/hwmon/hwmon*")] == ["n1", "n9", "10"]
