"""The disk budget of a board: what is needed stays, what nobody needs goes, oldest first."""

import os
from pathlib import Path

import pytest

from shoal.agent.room import Needs, Room
from shoal.errors import BoardError
from shoal.records import Blob
from shoal.store import Store
from tests import build


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def put(store: Store, count: int, size_bytes: int = 1000) -> list[Blob]:
    """Put blobs of `size_bytes`, each changed a second after the one before."""
    found = []
    for number in range(count):
        found.append(store.put(bytes([number]) * size_bytes))
        os.utime(store.path(found[-1].sha256), (number, number))
    return found


def here(store: Store, blobs: list[Blob]) -> list[bool]:
    return [store.has(blob.sha256) for blob in blobs]


def test_while_there_is_room_nothing_goes(store: Store) -> None:
    blobs = put(store, 3)
    Room(store, 5000).make(2000, ())
    assert all(here(store, blobs))
    Room(store, None).make(2000, ())
    assert all(here(store, blobs))


def test_the_oldest_that_nobody_needs_goes_first(store: Store) -> None:
    blobs = put(store, 4)
    room = Room(store, 4000)
    room.needed = frozenset({blobs[0].sha256})
    room.make(1500, {blobs[1].sha256})
    assert here(store, blobs) == [True, True, False, False]


def test_what_is_held_for_plans_to_come_goes_last_and_the_least_likely_of_it_first(store: Store) -> None:
    blobs = put(store, 4)
    room = Room(store, 4000)
    room.ahead = (blobs[0].sha256, blobs[1].sha256)
    room.make(3000, ())
    assert here(store, blobs) == [True, False, False, False]


def test_if_it_cannot_be_enough_nothing_goes_and_the_reason_is_said(store: Store) -> None:
    blobs = put(store, 3)
    room = Room(store, 3000)
    room.needed = frozenset(blob.sha256 for blob in blobs[:2])
    with pytest.raises(BoardError, match=r"disk full: 0 MB to fetch, 0 MB free; .*--disk"):
        room.make(1001, ())
    assert all(here(store, blobs))
    room.make(1000, ())
    assert here(store, blobs) == [True, True, False]


def test_what_has_come_of_a_blob_is_dropped_unless_the_blob_is_wanted(store: Store) -> None:
    wanted, other = build.blob(1), build.blob(2)
    for blob in (wanted, other):
        store.part(blob.sha256).write_bytes(b"x" * 1000)
    Room(store, 2000).make(500, {wanted.sha256})
    assert store.part(wanted.sha256).exists()
    assert not store.part(other.sha256).exists()


def test_a_model_that_is_dropped_is_dropped_under_all_its_names(store: Store) -> None:
    (blob,) = put(store, 1)
    link = store.model(blob.sha256)
    part = store.root / f"{blob.sha256}.0-2.onnx"
    part.write_bytes(b"x")
    Room(store, 1000).make(1000, ())
    assert not link.exists()
    assert not part.exists()
    assert store.files() == {}


def test_needs_are_models_weights_and_of_divided_weights_the_pieces() -> None:
    manifest = build.chain()
    runs = {run: manifest.by_name[run.segment] for run in build.plan(1, build.A).runs_of(build.A)}
    needs = Needs.of(runs)
    whole = manifest.whole
    assert set(needs.blobs) == {whole.model, *whole.weights}
    assert needs.pieces == ()
    assert needs.names == {blob.sha256 for blob in needs.blobs}


def test_a_bundle_fits_beside_what_is_needed_only(store: Store) -> None:
    needed, loose = put(store, 2)
    room = Room(store, 3000)
    room.needed = frozenset({needed.sha256})
    more = Blob(sha256=build.sha(9), size_bytes=2000)
    assert room.fits([more])
    assert room.fits([more, needed])
    assert not room.fits([more, loose])
