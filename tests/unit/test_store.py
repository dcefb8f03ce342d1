"""Blobs on disk: whole or not there, under every name they have."""

import asyncio
import errno
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from shoal.encoding import to_json
from shoal.errors import BoardError, ModelError
from shoal.records import Blob, Sha256
from shoal.store import CHUNK_BYTES, Store, digest, writing
from tests import build

CONTENT = b"0123456789" * 1000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


def blob_of(content: bytes) -> Blob:
    return Blob(sha256=Sha256(hashlib.sha256(content).hexdigest()), size_bytes=len(content))


def spoil(path: Path, at: int = 0) -> None:
    """Flip a byte; the file is not rewritten, so other names of it are spoilt too."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


# --- whole blobs ----------------------------------------------------------------------------------


def test_what_is_put_is_there(store: Store) -> None:
    blob = store.put(CONTENT)
    assert blob == blob_of(CONTENT)
    assert store.has(blob.sha256)
    assert store.path(blob.sha256).read_bytes() == CONTENT
    assert not store.part(blob.sha256).exists()


def test_what_is_not_put_is_not_there(store: Store) -> None:
    assert not store.has(build.sha(1))
    store.part(build.sha(1)).write_bytes(b"x")
    assert not store.has(build.sha(1))


def test_a_store_finds_what_an_earlier_one_kept(store: Store) -> None:
    blob = store.put(CONTENT)
    assert Store(store.root).has(blob.sha256)


@pytest.mark.parametrize("at", [0, 5000, len(CONTENT) - 1])
@pytest.mark.parametrize("looked", [True, False])
def test_a_flipped_byte_is_found_and_the_blob_removed(store: Store, at: int, looked: bool) -> None:
    blob = store.put(CONTENT)
    if looked:
        assert store.has(blob.sha256)
    spoil(store.path(blob.sha256), at)
    assert not store.has(blob.sha256)
    assert not store.path(blob.sha256).exists()
    assert store.put(CONTENT) == blob
    assert store.has(blob.sha256)


def test_a_blob_cut_short_or_gone_is_noticed(store: Store) -> None:
    blob = store.put(CONTENT)
    assert store.has(blob.sha256)
    os.truncate(store.path(blob.sha256), 100)
    assert not store.has(blob.sha256)
    store.put(CONTENT)
    store.path(blob.sha256).unlink()
    assert not store.has(blob.sha256)


def test_a_blob_is_read_once_while_it_does_not_change(store: Store) -> None:
    blob = store.put(CONTENT)
    assert store.has(blob.sha256)
    path = store.path(blob.sha256)
    before = path.stat()
    spoil(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.has(blob.sha256), "size and time of change are trusted"
    assert not Store(store.root).has(blob.sha256), "but not over a restart"


def test_an_empty_blob_is_a_blob(store: Store) -> None:
    blob = store.put(b"")
    assert store.has(blob.sha256)
    assert blob.size_bytes == 0


# --- blobs under way ------------------------------------------------------------------------------


def test_a_part_is_collected_over_several_tries(store: Store) -> None:
    blob = blob_of(CONTENT)
    part = store.part(blob.sha256)
    with writing(part) as file:
        file.write(CONTENT[:4000])
    assert not store.has(blob.sha256)
    assert part.stat().st_size == 4000
    with writing(part, append=True) as file:
        file.write(CONTENT[4000:])
    store.finish(blob)
    assert store.has(blob.sha256)
    assert not part.exists()


def test_writing_anew_forgets_what_was_there(store: Store) -> None:
    blob = blob_of(CONTENT)
    store.part(blob.sha256).write_bytes(b"left over")
    with writing(store.part(blob.sha256)) as file:
        file.write(CONTENT)
    store.finish(blob)
    assert store.has(blob.sha256)


def test_wrong_bytes_are_refused_and_dropped(store: Store) -> None:
    blob = blob_of(CONTENT)
    store.part(blob.sha256).write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(ModelError, match=f"blob {blob.sha256[:12]}: expected that digest and 10000 bytes"):
        store.finish(blob)
    assert not store.part(blob.sha256).exists()
    assert not store.has(blob.sha256)


def test_the_digest_of_a_long_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * (CHUNK_BYTES // 100)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        assert digest(file) == hashlib.sha256(content).hexdigest()


# --- models and manifests -------------------------------------------------------------------------


def test_a_model_lies_beside_the_folder_of_its_weights(store: Store) -> None:
    blob = store.put(CONTENT)
    model = store.model(blob.sha256)
    assert model.parent == store.path(blob.sha256).parent.parent
    assert model.suffix == ".onnx"
    assert model.samefile(store.path(blob.sha256))
    assert store.model(blob.sha256) == model


def test_a_spoilt_model_is_not_opened_under_its_other_name(store: Store) -> None:
    blob = store.put(CONTENT)
    store.model(blob.sha256)
    spoil(store.path(blob.sha256))
    assert not store.has(blob.sha256)
    store.put(CONTENT)
    assert store.model(blob.sha256).read_bytes() == CONTENT


def test_a_manifest_is_read_by_digest(store: Store) -> None:
    manifest = build.chain()
    blob = store.put(to_json(manifest))
    assert store.manifest(blob.sha256) == manifest


def test_a_manifest_is_read_once_and_only_few_are_kept(store: Store) -> None:
    digests = [store.put(to_json(build.chain(name=f"m{number}"))).sha256 for number in range(3)]
    first = store.manifest(digests[0])
    assert store.manifest(digests[0]) is first
    assert [store.manifest(digest).name for digest in digests[1:]] == ["m1", "m2"]
    assert store.manifest(digests[0]) == first
    spoil(store.path(digests[0]))
    with pytest.raises(ModelError, match="not in"):
        store.manifest(digests[0])


def test_a_manifest_that_is_not_there_or_is_none_is_named(store: Store) -> None:
    with pytest.raises(ModelError, match=f"manifest {build.sha(1)[:12]}: not in"):
        store.manifest(build.sha(1))
    blob = store.put(b"[]")
    with pytest.raises(
        ModelError, match=f"manifest {blob.sha256[:12]}: expected shoal-bundle version 3 to 5"
    ):
        store.manifest(blob.sha256)


# --- disks ----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(BoardError, match="state/blobs: cannot make the folder: Not a directory"):
        Store(tmp_path / "state")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("size_bytes", [10, 1 << 20])
def test_a_full_disk_is_said_with_what_is_free(store: Store, size_bytes: int) -> None:
    content = bytes(size_bytes)
    store.part(blob_of(content).sha256).symlink_to("/dev/full")
    with pytest.raises(BoardError, match=r"disk full, [0-9.]+ MB free; make room or use another") as caught:
        store.put(content)
    found = re.search(r"([0-9.]+) MB free", str(caught.value))
    assert found is not None
    assert float(found[1]) == pytest.approx(shutil.disk_usage(store.root).free / 1e6, rel=0.1)
    assert not store.has(blob_of(content).sha256)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder with room for 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    able = os.geteuid() == 0 and shutil.which("mount") is not None
    if not able or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_keeps_what_it_had_and_takes_more_once_there_is_room(small_disk: Path) -> None:
    store = Store(small_disk)
    kept = store.put(bytes(100_000))
    large = bytes([1]) * 200_000
    with pytest.raises(BoardError, match=r"disk full, ([0-9.]+) MB free") as caught:
        store.put(large)
    found = re.search(r"([0-9.]+) MB free", str(caught.value))
    assert found is not None
    assert float(found[1]) < 0.2
    assert store.has(kept.sha256)
    store.path(kept.sha256).unlink()
    assert store.has(store.put(large).sha256)


def test_a_file_that_cannot_be_opened_is_named(store: Store) -> None:
    store.part(build.sha(1)).mkdir()
    with (
        pytest.raises(BoardError, match=f"{build.sha(1)}.part: cannot write: Is a directory"),
        writing(store.part(build.sha(1))),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_is_the_boards_trouble(store: Store, number: int) -> None:
    with pytest.raises(BoardError), writing(store.part(build.sha(1))):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        asyncio.TimeoutError(),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        aiohttp.ClientOSError(errno.ECONNRESET, "reset"),
        aiohttp.SocketTimeoutError("silence"),
        aiohttp.ServerDisconnectedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_trouble_with_the_network_is_not_taken_for_the_disks(store: Store, error: Exception) -> None:
    part = store.part(build.sha(1))

    def break_off() -> None:
        with writing(part) as file:
            file.write(b"so far")
            raise error

    with pytest.raises(type(error)):
        break_off()
    assert part.read_bytes() == b"so far", "the rest is fetched from there"
