"""Codebooks of a bundle: which a program needs, what they take, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shoal.agent.sessions import Sessions
from shoal.book import held_book_bytes
from shoal.codebooks import each, needed_bytes, other_blobs, read_book, wanted
from shoal.codec import Codec, codec_of
from shoal.coordinator.cost import needed_bytes as all_bytes
from shoal.errors import BoardError, ModelError
from shoal.firmware_configs import boards
from shoal.manifest import Manifest
from shoal.program import Program
from shoal.records import Blob
from shoal.sharding import programs
from shoal.store import Store
from tests import build
from tests.build import A, B

CODEC = codec_of("means2-vq2x4")


def told(manifest: Manifest, codec: Codec = CODEC.plain) -> Program:
    return programs(manifest.shardings[0], (A, B), A, (0.5, 0.5), codec)[A]


def manifest_of(codec: Codec) -> Manifest:
    manifest = build.sharded()
    return replace(manifest, codebooks=(build.codebook(manifest, codec),))


def test_a_program_without_codes_needs_none() -> None:
    assert wanted(build.sharded(), told(build.sharded(), codec_of("i8"))) == {}
    assert wanted(build.chain(), Program(steps=())) == {}


def test_a_program_needs_the_book_of_each_tensor_that_crosses_as_codes() -> None:
    codec = codec_of("vq2x4-keep1.1")
    manifest = manifest_of(codec)
    (record,) = manifest.codebooks
    assert wanted(manifest, told(manifest, codec)) == {2: {"k.part": record}}
    assert each([wanted(manifest, told(manifest, codec))] * 2) == {record.blob.sha256: record}
    assert record.blob.sha256 in manifest.blobs
    assert other_blobs(manifest) == list(build.sharded().blobs.values())


def test_the_memory_of_books_is_counted_once() -> None:
    codec = codec_of("vq2x4")
    manifest = manifest_of(codec)
    program = told(manifest, codec)
    plain = all_bytes(manifest, [told(manifest, codec_of("i8"))])
    assert needed_bytes(manifest, [program, program]) == held_book_bytes(codec, 8) > 2 * 4 * 8 * 4
    assert all_bytes(manifest, [program, program]) - plain == held_book_bytes(codec, 8)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"codec": "vq4x4"}, "codebook vq2x4 of k.part, sequence exchange 2: there is none"),
        ({"tensor": "v.part"}, "there is none"),
        ({"tag": 4}, "there is none"),
        ({"sharding": "sequence-hidden"}, "there is none"),
        ({"source": build.sha(5)}, "expected one for model .* got one for"),
    ],
)
def test_a_book_that_is_missing_or_of_another_model_is_named(change: dict[str, object], why: str) -> None:
    codec = codec_of("vq2x4")
    manifest = manifest_of(codec)
    other = replace(manifest.codebooks[0], **change)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=why):
        wanted(replace(manifest, codebooks=(other,)), told(manifest, codec))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"codec": "i8"}, "expected codes like vq16x256"),
        ({"codec": "means2-vq2x4"}, "expected codes like vq16x256"),
        ({"values": 7}, "expected values in 2 equal pieces, got 7"),
        ({"blob": build.blob(1, 12)}, "expected 128 bytes for vq2x4 of 8 values, got 12"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(manifest_of(codec_of("vq2x4")).codebooks[0], **change)  # type: ignore[arg-type]


def test_bytes_of_a_book_are_read_as_they_were_written() -> None:
    (record,) = manifest_of(codec_of("vq2x4")).codebooks
    table = np.arange(32, dtype="<f4")
    book = read_book(record, table.tobytes())
    assert np.array_equal(book.table.reshape(-1), table)
    assert book.values == 8
    with pytest.raises(ModelError, match=r"vq2x4 of k\.part: expected 128 bytes, got 124"):
        read_book(record, table.tobytes()[:-4])
    table[3] = np.nan
    with pytest.raises(ModelError, match=r"codebook of k\.part: .* expected finite numbers"):
        read_book(record, table.tobytes())


def test_a_board_loads_books_once_and_within_its_memory(tmp_path: Path) -> None:
    store = Store(tmp_path)
    codec = codec_of("vq2x4")
    blob: Blob = store.put(np.arange(32, dtype="<f4").tobytes())
    record = replace(manifest_of(codec).codebooks[0], blob=blob)
    room = held_book_bytes(codec, 8)
    runtime = boards.load("x86-mini").runtime
    sessions = Sessions(store, runtime, room)
    first = sessions.open_books({blob.sha256: record})[blob.sha256]
    assert sessions.open_books({blob.sha256: record})[blob.sha256] is first
    assert sessions.room_bytes == 0
    sessions.keep_books(())
    assert sessions.room_bytes == room
    with pytest.raises(BoardError, match=r"1 codebooks: .* with what is loaded already"):
        Sessions(store, runtime, room - 1).open_books({blob.sha256: record})
