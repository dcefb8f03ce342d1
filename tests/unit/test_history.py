"""The file in which history is kept: bounded, and whatever happens to it stops nobody."""

import logging
import resource
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from shoal.coordinator import history
from shoal.coordinator.entries import Entry
from shoal.coordinator.history import VERSION, History, Scribe, file_of, read
from shoal.errors import ConfigError
from tests.unit.test_chronicle import NOTHING

NAME = "history.db"


def entry(number: int, *, measured: bool = False) -> Entry:
    return Entry(
        at_s=1000.0 + number,
        kind="measured" if measured else "event",
        epoch=number,
        words=f"number {number}",
        plan=None,
        alternatives=(),
        measured=NOTHING if measured else None,
        slower=None,
    )


def written(folder: Path, *entries: Entry, most: int = 1000) -> Path:
    kept = History(folder / NAME, most_decisions=most)
    kept.keep(entries)
    kept.write()
    kept.close()
    return kept.file


def numbers(file: Path, since_s: float = 0.0, limit: int = 0) -> list[int]:
    return [each.epoch for each in read(file, since_s, limit)]


def test_what_was_kept_is_read_again_in_order(tmp_path: Path) -> None:
    entries = [entry(1), entry(2, measured=True), entry(3)]
    file = written(tmp_path, *entries)
    assert read(file) == entries
    written(tmp_path, entry(4))
    assert numbers(file) == [1, 2, 3, 4]
    assert numbers(file, since_s=1002.5) == [3, 4]


def test_a_limit_counts_decisions_and_takes_what_was_measured_since(tmp_path: Path) -> None:
    file = written(tmp_path, *(entry(number, measured=number % 3 != 0) for number in range(12)))
    assert numbers(file, limit=2) == [6, 7, 8, 9, 10, 11]
    assert numbers(file, limit=99) == list(range(12))


def test_old_entries_are_pruned_each_kind_by_itself(tmp_path: Path) -> None:
    for start in range(0, 1000, 100):
        batch = [entry(number, measured=number % 2 == 0) for number in range(start, start + 100)]
        file = written(tmp_path, *batch, most=50)
    found = read(file)
    assert len([each for each in found if each.measured is None]) == 50
    assert len([each for each in found if each.measured is not None]) == 100
    assert found[-1].epoch == 999


def test_a_file_that_is_spoilt_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).write_bytes(b"no database " * 1000)
    file = written(tmp_path, entry(1))
    assert numbers(file) == [1]
    assert (tmp_path / "history.spoilt").read_bytes().startswith(b"no database")
    assert "put aside" in caplog.text


def test_a_file_in_the_middle_of_which_something_is_wrong_is_put_aside(tmp_path: Path) -> None:
    file = written(tmp_path, *(entry(number) for number in range(500)))
    whole = bytearray(file.read_bytes())
    whole[4096:] = b"\xff" * (len(whole) - 4096)
    file.write_bytes(whole)
    written(tmp_path, entry(7))
    assert numbers(file) == [7]


def test_a_file_of_another_version_is_put_aside(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / NAME)) as base:
        base.execute(f"PRAGMA user_version={VERSION + 1}")
        base.execute("CREATE TABLE entries (something TEXT)")
        base.commit()
    assert numbers(written(tmp_path, entry(1))) == [1]


def test_a_place_where_nothing_can_be_written_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).mkdir()
    with caplog.at_level(logging.WARNING):
        written(tmp_path, entry(1), entry(2))
    assert "not kept" in caplog.text


@contextmanager
def full_disk(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_nobody_and_what_comes_later_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path, entry(1))
    with full_disk(file.stat().st_size):
        written(tmp_path, *(entry(number) for number in range(2, 900)))
    assert "not kept" in caplog.text
    written(tmp_path, entry(1000))
    assert numbers(file) == [1, 1000]
    assert not (tmp_path / "history.spoilt").exists()


def test_more_than_can_be_written_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history, "MOST_WAITING", 3)
    file = written(tmp_path, *(entry(number) for number in range(9)))
    assert numbers(file)[:3] == [0, 1, 2]
    assert "more comes than can be written" in caplog.text


def test_two_coordinators_with_one_folder_both_write(tmp_path: Path) -> None:
    one, other = History(tmp_path / NAME), History(tmp_path / NAME)
    scribes = Scribe([one]), Scribe([other])
    for number in range(20):
        (one if number % 2 else other).keep([entry(number)])
    for scribe in scribes:
        scribe.close()
    assert sorted(numbers(one.file)) == list(range(20))


def test_one_thread_writes_for_all_clusters_and_one_that_fails_stops_none(tmp_path: Path) -> None:
    kept = [History(file_of(tmp_path, cluster)) for cluster in ("a", "a.b", "c")]
    kept[0].file.mkdir()
    scribe = Scribe(kept)
    for number, each in enumerate(kept):
        each.keep([entry(number)])
    scribe.close()
    assert [numbers(each.file) for each in kept[1:]] == [[1], [2]]


def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the files that histories open from now on, to write."""
    found: list[Path] = []
    connect = sqlite3.connect

    def counted(file: Path | str, **options: object) -> sqlite3.Connection:
        if isinstance(file, Path):
            found.append(file)
        return connect(file, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite3, "connect", counted)
    return found


def test_a_file_stays_open_and_can_be_read_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = opened(monkeypatch)
    kept = History(tmp_path / NAME)
    for number in range(5):
        kept.keep([entry(number)])
        kept.write()
        assert numbers(kept.file) == list(range(number + 1))
    kept.close()
    assert times == [kept.file]
    assert [file.name for file in tmp_path.iterdir()] == [NAME], "nothing beside it"


def test_a_file_that_somebody_removes_is_begun_anew(tmp_path: Path) -> None:
    kept = History(tmp_path / NAME)
    kept.keep([entry(1)])
    kept.write()
    kept.file.unlink()
    kept.keep([entry(2)])
    kept.write()
    assert numbers(kept.file) == [2]
    kept.close()


def test_a_file_that_is_open_can_be_copied_and_put_back(tmp_path: Path) -> None:
    kept = History(tmp_path / NAME)
    kept.keep([entry(1)])
    kept.write()
    copy = tmp_path / "copy.db"
    copy.write_bytes(kept.file.read_bytes())
    assert numbers(copy) in ([], [1]), "the newest entries may stand beside it"
    (tmp_path / "older").mkdir()
    written(tmp_path / "older", entry(7)).replace(kept.file)
    kept.keep([entry(8)])
    kept.write()
    assert numbers(kept.file) == [7, 8], "of the file that was there before nothing is left"
    kept.close()


def test_of_very_many_clusters_not_all_files_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_OPEN", 1)
    monkeypatch.setattr(history, "BATCH_S", 0.0)
    times = opened(monkeypatch)
    kept = [History(file_of(tmp_path, cluster)) for cluster in ("a", "b")]
    scribe = Scribe(kept)
    for number in range(3):
        for each in kept:
            each.keep([entry(number)])
        while any(each._written <= number for each in kept):
            time.sleep(0.001)
    scribe.close()
    assert [times.count(each.file) for each in kept] == [1, 3]


def test_a_history_that_is_not_there_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no history"):
        read(tmp_path / NAME)
    (tmp_path / NAME).write_text("hello")
    with pytest.raises(ConfigError, match="expected a history"):
        read(tmp_path / NAME)


def test_entries_that_another_version_wrote_are_left_out(tmp_path: Path) -> None:
    file = written(tmp_path, entry(1), entry(2))
    with closing(sqlite3.connect(file)) as base:
        base.execute("UPDATE entries SET body = '{}' WHERE id = 1")
        base.commit()
    assert numbers(file) == [2]
