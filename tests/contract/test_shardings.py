"""Shardings over real sockets: several boards in one process, each with its own store and sessions."""

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
import onnx
import pytest
from aiohttp import web

from shoal.agent.executor import Executor
from shoal.agent.fetch import Fetcher
from shoal.agent.peers import Peers
from shoal.agent.sessions import Sessions
from shoal.codec import codec_of
from shoal.coordinator.depot import Depot
from shoal.errors import ModelError, PlanError
from shoal.exporter.export import export
from shoal.firmware_configs import boards
from shoal.lab import builtin
from shoal.manifest import Manifest
from shoal.parts import pieces
from shoal.program import Lane, Plan, Prediction, Program, Run
from shoal.records import Address, Array, BoardId, Sha256
from shoal.session import open_session
from shoal.sharding import programs
from shoal.store import Store
from tests import models

TOKENS = 11


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Manifest]:
    """Return a model file, the store that serves its bundle, and the manifest."""
    folder = tmp_path_factory.mktemp("bundle")
    model = folder / "bert.onnx"
    onnx.save(models.tiny_bert(hidden=32, heads=4), model)
    manifest = export(model, folder / "bundle", sizes={"tokens": TOKENS})
    store = Store(folder / "depot")
    for path in (*(folder / "bundle").glob("*.onnx"), *(folder / "bundle" / "blobs").iterdir()):
        store.put(path.read_bytes())
    return model, folder / "depot", manifest


class Board:
    def __init__(self, name: BoardId, folder: Path) -> None:
        self.store = Store(folder / name)
        self.sessions = Sessions(self.store, replace(boards.load("x86-mini").runtime, threads=1), 1 << 30)
        self.executor = Executor(name, lambda *_run: None, lambda *_failure: None)
        self.peers = Peers("test", name, self.executor.begin)
        self.executor.connect(self.peers)
        self.address = Address(host="127.0.0.1", data_port=self.peers.listen("127.0.0.1", 0), http_port=1)


class Cluster:
    """Boards that hold one plan."""

    def __init__(self, folder: Path, depot: Path, manifest: Manifest, told: dict[BoardId, Program]) -> None:
        self.lead = next(iter(told))
        self.boards = {name: Board(name, folder) for name in told}
        addresses = {name: board.address for name, board in self.boards.items()}
        plan = Plan(
            epoch=1,
            bundle=Sha256("0" * 64),
            model="m",
            strategy="sequence",
            lead=self.lead,
            lanes=(Lane(programs=told, weight=1.0),),
            addresses=addresses,
            predicted=Prediction(latency_s=1.0, throughput_per_s=1.0),
            reason="test",
        )
        asyncio.run(self._fetch(depot, manifest, told))
        for name, board in self.boards.items():
            board.peers.know(addresses)
            runs = {run: manifest.by_name[run.segment] for run in plan.runs_of(name)}
            board.executor.hold(plan, board.sessions.open(runs))

    async def _fetch(self, depot: Path, manifest: Manifest, told: dict[BoardId, Program]) -> None:
        runner = web.AppRunner(Depot(Store(depot)).application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as http:
            for name, board in self.boards.items():
                fetcher = Fetcher(board.store, http)
                for run in told[name].runs:
                    segment = manifest.by_name[run.segment]
                    sliced = {one.blob for one in segment.slices} if run.part else set()
                    await fetcher.fetch(url, [segment.model, *(set(segment.weights) - sliced)])
                    if run.part:
                        await fetcher.fetch_pieces(url, pieces(segment, run.part))
        await runner.cleanup()

    def ask(self, inputs: dict[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        executor = self.boards[self.lead].executor
        return executor.lead(1, 0, secrets.token_bytes(16), inputs, time.monotonic() + 20, list(wanted))

    def stop(self) -> None:
        for board in self.boards.values():
            board.peers.stop()


@pytest.fixture(params=["sequence", "sequence-hidden", "tensor"])
def cluster(
    request: pytest.FixtureRequest, bundle: tuple[Path, Path, Manifest], tmp_path: Path
) -> Iterator[Cluster]:
    _, depot, manifest = bundle
    sharding = next(s for s in manifest.shardings if s.name == request.param)
    names = [BoardId(name) for name in ("a", "b", "c")]
    found = Cluster(tmp_path, depot, manifest, programs(sharding, names, names[0], (0.25, 0.5, 0.25)))
    yield found
    found.stop()


def question(batch: int, tokens: int, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    mask = np.ones((batch, tokens), np.int64)
    mask[-1, tokens - 2 :] = 0
    return {"input_ids": random.integers(0, 100, (batch, tokens)), "attention_mask": mask}


def test_boards_together_answer_like_the_model(cluster: Cluster, bundle: tuple[Path, Path, Manifest]) -> None:
    original = open_session(bundle[0])
    for seed, (batch, tokens) in enumerate(((1, TOKENS), (1, 3), (3, 7), (2, 40))):
        asked = question(batch, tokens, seed)
        want = original.run(asked)
        got = cluster.ask(asked, original.outputs)
        for name, array in want.items():
            assert got[name].shape == array.shape
            assert np.allclose(got[name], array, atol=1e-5)
    until_s = time.monotonic() + 3
    while any(board.peers._inboxes for board in cluster.boards.values()) and time.monotonic() < until_s:
        time.sleep(0.005)
    assert not any(board.peers._inboxes for board in cluster.boards.values()), "something is left behind"


@pytest.mark.parametrize(
    ("words", "chunks", "count", "within"),
    [
        ("f32", 3, 2, 1e-5),
        ("f16", 1, 3, 2e-3),
        ("i8", 2, 4, 2e-2),
        ("means1.0001", 1, 3, 1e-5),
        ("means1.0001", 2, 2, 1e-5),
        ("means2-i8", 2, 2, 0.5),
        ("f32", 1, 16, 1e-5),
    ],
)
@pytest.mark.parametrize("name", ["sequence", "sequence-hidden"])
def test_boards_together_answer_within_the_error_of_their_codec(
    name: str,
    words: str,
    chunks: int,
    count: int,
    within: float,
    bundle: tuple[Path, Path, Manifest],
    tmp_path: Path,
) -> None:
    model, depot, manifest = bundle
    sharding = next(s for s in manifest.shardings if s.name == name)
    boards = [BoardId(f"b{number}") for number in range(count)]
    told = programs(sharding, boards, boards[0], (1 / count,) * count, codec_of(words), chunks)
    assert any(isinstance(step, Run) and step.chunks == chunks for step in told[boards[-1]].steps)
    cluster = Cluster(tmp_path, depot, manifest, told)
    original = open_session(model)
    try:
        for seed, (batch, tokens) in enumerate(((1, 23), (3, 17))):
            asked = question(batch, tokens, seed)
            want = original.run(asked)
            got = cluster.ask(asked, original.outputs)
            for output, array in want.items():
                assert np.abs(np.subtract(got[output], array)).max() <= within * np.abs(array).max()
    finally:
        cluster.stop()


@pytest.mark.parametrize("name", ["sequence", "sequence-hidden"])
def test_rows_are_divided_in_chunks_where_no_segment_reads_their_range(name: str, tmp_path: Path) -> None:
    """The lab's encoders have no positions: nothing but dividing the rows needs the range."""
    model = tmp_path / "encoder.onnx"
    builtin.write("encoder-tiny", model)
    manifest = export(model, tmp_path / "bundle", sizes={"batch": 1, "tokens": TOKENS})
    store = Store(tmp_path / "depot")
    for path in (*(tmp_path / "bundle").glob("*.onnx"), *(tmp_path / "bundle" / "blobs").iterdir()):
        store.put(path.read_bytes())
    sharding = next(s for s in manifest.shardings if s.name == name)
    boards = [BoardId("a"), BoardId("b")]
    told = programs(sharding, boards, boards[0], (0.5, 0.5), codec_of("f32"), 2)
    cluster = Cluster(tmp_path, tmp_path / "depot", manifest, told)
    try:
        asked: dict[str, Array] = {
            "x": np.random.default_rng(0).standard_normal((2, 9, 96)).astype(np.float32)
        }
        want = open_session(model).run(asked)["y"]
        assert np.allclose(cluster.ask(asked, ["y"])["y"], want, atol=1e-4)
    finally:
        cluster.stop()


def test_codecs_are_one_for_each_exchange(bundle: tuple[Path, Path, Manifest], tmp_path: Path) -> None:
    model, depot, manifest = bundle
    sharding = manifest.shardings[0]
    boards = [BoardId("a"), BoardId("b")]
    with pytest.raises(PlanError, match=f"expected {sharding.exchanges} codecs, got 1"):
        programs(sharding, boards, boards[0], (0.5, 0.5), [codec_of("i8")])
    each = [codec_of(("i8", "means1.0001")[number % 2]) for number in range(sharding.exchanges)]
    cluster = Cluster(tmp_path, depot, manifest, programs(sharding, boards, boards[0], (0.5, 0.5), each))
    original = open_session(model)
    try:
        asked = question(1, 20, 0)
        got, want = cluster.ask(asked, original.outputs), original.run(asked)
        for output, array in want.items():
            assert np.allclose(got[output], array, atol=2e-2 * np.abs(array).max())
    finally:
        cluster.stop()


@pytest.mark.parametrize("cluster", ["sequence", "sequence-hidden"], indirect=True)
def test_a_request_too_short_to_divide_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ModelError, match="expected a row for each board, got 2 rows"):
        cluster.ask(question(1, 2, 0), ["pooled"])


def test_a_board_holds_the_bytes_of_its_heads_only(
    bundle: tuple[Path, Path, Manifest], tmp_path: Path
) -> None:
    _, depot, manifest = bundle
    sharding = next(s for s in manifest.shardings if s.name == "tensor")
    names = [BoardId(name) for name in ("a", "b")]
    told = programs(sharding, names, names[0], (0.25, 0.75))
    cluster = Cluster(tmp_path, depot, manifest, told)
    cluster.stop()
    sliced = {one.blob.sha256: one.blob for s in sharding.segments for one in s.slices}
    held = {
        name: sum(
            path.stat().st_size
            for path in (tmp_path / name / "blobs").iterdir()
            if path.name.split(".")[0] in sliced
        )
        for name in names
    }
    whole = sum(blob.size_bytes for blob in sliced.values())
    assert held[names[0]] == whole // 4
    assert held[names[1]] == whole - whole // 4
    for name in names:
        runs = {run: manifest.by_name[run.segment] for run in told[name].runs}
        assert sum(segment.held_bytes(run.part) for run, segment in runs.items()) < 2 * held[name] + 40_000


def test_a_spoilt_piece_is_fetched_again(bundle: tuple[Path, Path, Manifest], tmp_path: Path) -> None:
    _, depot, manifest = bundle
    segment = next(s for sharding in manifest.shardings for s in sharding.segments if s.slices)
    piece = pieces(segment, (0, 1))[0]
    store = Store(tmp_path / "board")
    path = tmp_path / "board" / "blobs" / piece.name
    path.write_bytes(bytes(piece.size_bytes))
    assert not store.has_piece(piece)
    told = {BoardId("x"): Program(steps=(Run(segment=segment.name, part=(0, 1)),))}
    board = Board(BoardId("board"), tmp_path)
    fetching = Cluster.__new__(Cluster)
    fetching.boards = {BoardId("x"): board}
    asyncio.run(fetching._fetch(depot, manifest, told))
    board.peers.stop()
    assert store.has_piece(piece)
