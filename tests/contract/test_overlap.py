"""Boards compute while bytes travel: those of their own request, and those of another."""

import secrets
import socket
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from shoal.agent.connection import Buffers, Connection, Passed, Purpose
from shoal.agent.trace import Trace
from shoal.exporter.export import export
from shoal.frames import Kind
from shoal.manifest import Manifest
from shoal.program import Collective, Program, Run
from shoal.records import Array, BoardId
from shoal.session import open_session
from shoal.sharding import programs
from shoal.store import Store
from shoal.timeline import Mark
from tests import models
from tests.connections import PATIENCE_S, Connected, header_of
from tests.contract.conftest import TOKENS
from tests.contract.test_shardings import Cluster, question
from tests.unit.test_exporter_apart import attends_aside

A, B, C = BOARDS = tuple(BoardId(name) for name in ("a", "b", "c"))


class Half(Connection):
    """Of one board's rows of one exchange it sends a half, and the rest when it may."""

    direct = False

    def __init__(self, tag: int, may: threading.Event, sock: socket.socket, peer: BoardId | None) -> None:
        super().__init__(sock, peer)
        self._tag, self._may = tag, may

    def write(self, views: list[memoryview], size_bytes: int) -> None:
        header = header_of(views)
        if header.kind is not Kind.TENSORS or header.tag != self._tag:
            super().write(views, size_bytes)
            return
        whole = memoryview(b"".join(views))
        self._push([whole[: size_bytes // 2]])
        self._may.wait(PATIENCE_S)
        self._push([whole[size_bytes // 2 :]])


class After(Connection):
    """It sends the rows of one exchange when those of the other board have begun to come."""

    def __init__(self, tag: int, comes: threading.Event, sock: socket.socket, peer: BoardId | None) -> None:
        super().__init__(sock, peer)
        self._tag, self._comes = tag, comes

    def send(self, buffers: Buffers, purpose: Purpose | None = None) -> None:
        header = header_of(buffers)
        if header.kind is Kind.TENSORS and header.tag == self._tag:
            self._comes.wait(PATIENCE_S)
        super().send(buffers, purpose)

    def receive_into(self, view: memoryview, passed: Passed | None = None) -> Generator[None, None, None]:
        self._comes.set()
        yield from super().receive_into(view, passed)


def first_gather(program: Program) -> tuple[Collective, Run]:
    """Return the first exchange among all, and the run behind it."""
    at, step = next(
        (at, step)
        for at, step in enumerate(program.steps)
        if isinstance(step, Collective) and step.kind == "gather" and step.root is None
    )
    behind = program.steps[at + 1]
    assert isinstance(behind, Run)
    return step, behind


@pytest.mark.parametrize("name", ["sequence", "sequence-hidden"])
def test_keys_and_values_come_in_while_queries_are_computed(
    name: str, bundle: tuple[Path, Path, Manifest], tmp_path: Path
) -> None:
    """The other board hands over all that it has only when it was seen that this one has run a segment."""
    model, depot, manifest = bundle
    sharding = next(each for each in manifest.shardings if each.name == name)
    told = programs(sharding, (A, B), A, (0.5, 0.5))
    gather, run = first_gather(told[A])
    comes, ran = threading.Event(), threading.Event()

    def connected(board: BoardId) -> Connected:
        if board == A:
            return lambda sock, peer: After(gather.tag, comes, sock, peer)
        return lambda sock, peer: Half(gather.tag, ran, sock, peer)

    cluster, trace = Cluster(tmp_path, depot, manifest, told, connected), Trace()
    cluster.boards[A].executor._on_run = lambda step, *_run: ran.set() if step == run else None
    original = open_session(model)
    try:
        asked = question(2, 20, 1)
        got = cluster.ask(asked, original.outputs, trace=trace)
        for output, array in original.run(asked).items():
            assert np.allclose(got[output], array, atol=1e-5)
        marks = trace.whole(PATIENCE_S)[A]
        computed = the_one(marks, lambda mark: (mark.what, mark.name) == ("run", run.segment))
        came = the_one(marks, lambda mark: (mark.what, mark.name) == ("receive", f"gather {gather.tag}"))
        waited = the_one(marks, lambda mark: (mark.what, mark.name) == ("wait", f"gather {gather.tag}"))
        assert came.begin_s <= computed.begin_s
        assert computed.begin_s + computed.seconds <= came.begin_s + came.seconds
        assert computed.begin_s + computed.seconds <= waited.begin_s, "it waits when nothing is left to do"
    finally:
        cluster.stop()


def test_rows_that_two_attentions_read_are_gathered_whole(tmp_path: Path) -> None:
    model, depot = tmp_path / "model.onnx", tmp_path / "depot"
    onnx.save(attends_aside(), model)
    manifest = export(model, tmp_path / "bundle", sizes={"tokens": TOKENS})
    for path in (*(tmp_path / "bundle").glob("*.onnx"), *(tmp_path / "bundle" / "blobs").iterdir()):
        Store(depot).put(path.read_bytes())
    sharding = next(each for each in manifest.shardings if each.name == "sequence")
    told = programs(sharding, (A, B), A, (0.6, 0.4), in_parts=True)
    reads = {
        spec.name for run in told[A].runs if run.partial for spec in manifest.by_name[run.segment].inputs
    }
    gather, _ = first_gather(told[A])
    assert len(reads.intersection(gather.made)) == 4, "keys and values of both"
    cluster = Cluster(tmp_path, depot, manifest, told)
    original = open_session(model)
    try:
        asked: dict[str, Array] = {"input_ids": np.random.default_rng(1).integers(0, 50, (2, 20))}
        got = cluster.ask(asked, original.outputs)
        assert np.allclose(got["logits"], original.run(asked)["logits"], atol=1e-5)
    finally:
        cluster.stop()


def test_rows_are_attended_to_while_others_come_in(tmp_path: Path) -> None:
    """The last board hands over the rest of its rows only when the first has attended to what it had."""
    model, depot = tmp_path / "model.onnx", tmp_path / "depot"
    onnx.save(models.tiny_transformer(tokens="tokens", vocabulary=50), model)
    manifest = export(model, tmp_path / "bundle", sizes={"tokens": TOKENS})
    for path in (*(tmp_path / "bundle").glob("*.onnx"), *(tmp_path / "bundle" / "blobs").iterdir()):
        Store(depot).put(path.read_bytes())
    sharding = next(each for each in manifest.shardings if each.name == "sequence")
    told = programs(sharding, BOARDS, A, (0.4, 0.3, 0.3), in_parts=True)
    gather, _ = first_gather(told[A])
    attend = next(step for step in told[A].steps if isinstance(step, Run) and step.partial)
    attended = threading.Event()

    def connected(board: BoardId) -> Connected:
        return Connection if board != C else lambda sock, peer: Half(gather.tag, attended, sock, peer)

    cluster, trace = Cluster(tmp_path, depot, manifest, told, connected), Trace()
    cluster.boards[A].executor._on_run = lambda step, *_run: (
        attended.set() if step == attend.on_some else None
    )
    original = open_session(model)
    try:
        asked: dict[str, Array] = {"input_ids": np.random.default_rng(1).integers(0, 50, (2, 20))}
        got = cluster.ask(asked, original.outputs, trace=trace)
        for output, array in original.run(asked).items():
            assert np.allclose(got[output], array, atol=1e-5)
        marks = trace.whole(PATIENCE_S)[A]
        ran = [mark for mark in marks if (mark.what, mark.name) == ("run", attend.partial)]
        came = the_one(
            marks,
            lambda mark: (mark.what, mark.name, mark.peer) == ("receive", f"gather {gather.tag}", C),
        )
        assert 2 <= len(ran) <= 3, "its own rows, with or before those of B, and at last those of C"
        assert ran[0].begin_s + ran[0].seconds <= came.begin_s + came.seconds
    finally:
        cluster.stop()


def the_one(marks: list[Mark], fits: Callable[[Mark], bool]) -> Mark:
    (found,) = (mark for mark in marks if fits(mark))
    return found


class Held(Connection):
    """It holds up the rows of one attempt."""

    def __init__(
        self,
        attempt: bytes,
        holds: threading.Event,
        may: threading.Event,
        sock: socket.socket,
        peer: BoardId | None,
    ) -> None:
        super().__init__(sock, peer)
        self._attempt, self._holds, self._may = attempt, holds, may

    def send(self, buffers: Buffers, purpose: Purpose | None = None) -> None:
        header = header_of(buffers)
        if header.kind is Kind.TENSORS and header.attempt == self._attempt:
            self._holds.set()
            self._may.wait(PATIENCE_S)
        super().send(buffers, purpose)


@pytest.mark.parametrize("name", ["sequence", "tensor"])
def test_while_a_request_waits_for_bytes_others_are_answered(
    name: str, bundle: tuple[Path, Path, Manifest], tmp_path: Path
) -> None:
    """Two boards wait for what the third does not send of the first request, and compute the others."""
    model, depot, manifest = bundle
    sharding = next(each for each in manifest.shardings if each.name == name)
    told = programs(sharding, BOARDS, A, (0.25, 0.5, 0.25))
    first = secrets.token_bytes(16)
    holds, may = threading.Event(), threading.Event()

    def connected(board: BoardId) -> Connected:
        return Connection if board != B else lambda sock, peer: Held(first, holds, may, sock, peer)

    cluster, original = Cluster(tmp_path, depot, manifest, told, connected), open_session(model)
    asked = [question(1, 12 + number, number) for number in range(4)]
    threads = ThreadPoolExecutor(1)
    try:
        waiting = threads.submit(cluster.ask, asked[0], original.outputs, first)
        assert holds.wait(PATIENCE_S)
        answers = [cluster.ask(each, original.outputs, within_s=PATIENCE_S / 2) for each in asked[1:]]
        assert not waiting.done()
        may.set()
        answers.insert(0, waiting.result(PATIENCE_S))
        for each, got in zip(asked, answers, strict=True):
            for output, array in original.run(each).items():
                assert np.allclose(got[output], array, atol=1e-5)
        assert cluster.settled()
    finally:
        may.set()
        threads.shutdown()
        cluster.stop()
