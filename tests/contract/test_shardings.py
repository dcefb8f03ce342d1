"""Shardings over real sockets: several boards in one process, each with its own store and sessions."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
import onnx
import pytest
from aiohttp import web

from shoal import session
from shoal.agent.connection import Connection
from shoal.agent.executor import Executor
from shoal.agent.fetch import Fetcher
from shoal.agent.peers import Peers
from shoal.agent.room import Needs, Room
from shoal.agent.sessions import Sessions
from shoal.agent.trace import Trace
from shoal.book import book_of
from shoal.codebooks import each, wanted
from shoal.codec import codec_of
from shoal.coordinator.depot import Depot
from shoal.errors import ModelError, PlanError
from shoal.exporter.export import export
from shoal.exporter.prove import Segments
from shoal.exporter.together import Manner, play
from shoal.firmware_configs import boards
from shoal.lab import builtin
from shoal.manifest import Manifest, ShardCollective
from shoal.measured import Codebook, recipe_of
from shoal.parts import pieces
from shoal.program import Lane, Plan, Prediction, Program, Run
from shoal.records import Address, Array, BoardId, Sha256
from shoal.session import CPU, open_session
from shoal.sharding import programs
from shoal.store import Store
from tests import models
from tests.connections import Connected
from tests.contract.conftest import TOKENS


class Board:
    def __init__(self, name: BoardId, folder: Path, connected: Connected = Connection) -> None:
        self.store = Store(folder / name)
        self.sessions = Sessions(self.store, replace(boards.load("x86-mini").runtime, threads=1), 1 << 30)
        self.executor = Executor(name, lambda *_run: None, lambda *_failure: None)
        self.peers = Peers("test", name, self.executor.begin, connected)
        self.executor.connect(self.peers)
        self.address = Address(host="127.0.0.1", data_port=self.peers.listen("127.0.0.1", 0), http_port=1)


class Cluster:
    """Boards that hold one plan, each with connections of its own kind if that is said."""

    def __init__(
        self,
        folder: Path,
        depot: Path,
        manifest: Manifest,
        told: dict[BoardId, Program],
        connected: Callable[[BoardId], Connected] = lambda _board: Connection,
    ) -> None:
        self.lead = next(iter(told))
        self.boards = {name: Board(name, folder, connected(name)) for name in told}
        addresses = {name: board.address for name, board in self.boards.items()}
        self.plan = plan = Plan(
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
            codebooks = wanted(manifest, told[name])
            books = board.sessions.open_books(each([codebooks]))
            by_step = {
                (0, tag): {tensor: books[one.blob.sha256] for tensor, one in by_tensor.items()}
                for tag, by_tensor in codebooks.items()
            }
            board.executor.hold(plan, board.sessions.open(runs), by_step)

    async def _fetch(self, depot: Path, manifest: Manifest, told: dict[BoardId, Program]) -> None:
        runner = web.AppRunner(Depot(Store(depot)).application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as http:
            for name, board in self.boards.items():
                fetcher = Fetcher(board.store, http, Room(board.store, None))
                books = each([wanted(manifest, told[name])])
                needs = Needs.of({run: manifest.by_name[run.segment] for run in told[name].runs})
                await fetcher.fetch(url, [*needs.blobs, *(book.blob for book in books.values())])
                await fetcher.fetch_pieces(url, needs.pieces)
        await runner.cleanup()

    def ask(
        self,
        inputs: dict[str, Array],
        wanted: Sequence[str],
        attempt: bytes = b"",
        trace: Trace | None = None,
        within_s: float = 20.0,
    ) -> dict[str, Array]:
        executor, attempt = self.boards[self.lead].executor, attempt or secrets.token_bytes(16)
        return executor.lead(1, 0, attempt, inputs, time.monotonic() + within_s, list(wanted), trace)

    def settled(self) -> bool:
        """Wait until no board has an attempt or anything that came for one, and say whether that is so."""
        until_s = time.monotonic() + 3
        while self._under_way() and time.monotonic() < until_s:
            time.sleep(0.005)
        return not self._under_way()

    def _under_way(self) -> bool:
        return any(len(board.peers.inboxes) or board.executor.busy for board in self.boards.values())

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
    assert cluster.settled(), "something is left behind"
    assert not any(board.peers.admission.foreign for board in cluster.boards.values())


@pytest.mark.parametrize(
    ("name", "chunks"), [("sequence", 1), ("sequence", 2), ("sequence-hidden", 1), ("tensor", 1)]
)
def test_boards_with_a_device_answer_like_the_model(
    bundle: tuple[Path, Path, Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    chunks: int,
) -> None:
    """The processor stands for the device: tensors are bound to it, copied there and back as to a GPU."""
    model, depot, manifest = bundle
    original = open_session(model)
    monkeypatch.setitem(session._DEVICES, CPU, "cpu")
    sharding = next(s for s in manifest.shardings if s.name == name)
    names = [BoardId(each) for each in ("a", "b", "c")]
    told = programs(sharding, names, names[0], (0.25, 0.5, 0.25), chunks=chunks)
    cluster = Cluster(tmp_path, depot, manifest, told)
    try:
        asked = question(2, 40, 0)
        got = cluster.ask(asked, original.outputs)
        for output, array in original.run(asked).items():
            assert np.allclose(got[output], array, atol=1e-5)
        for board in cluster.boards.values():
            (held,) = board.executor._held.values()
            assert {each.device for each in held.sessions.values()} == {"cpu"}
            assert any(turn.stays for turn in held.turns[0])
    finally:
        cluster.stop()


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


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Manifest]:
    """Return a model whose head reads one row, the depot of its bundle, and the manifest."""
    folder = tmp_path_factory.mktemp("classifier")
    model, depot = folder / "model.onnx", folder / "depot"
    onnx.save(models.tiny_transformer(tokens="tokens", vocabulary=100, class_token=True), model)
    manifest = export(model, folder / "bundle", sizes={"batch": 1, "tokens": TOKENS})
    store = Store(depot)
    for path in (*(folder / "bundle").glob("*.onnx"), *(folder / "bundle" / "blobs").iterdir()):
        store.put(path.read_bytes())
    return model, depot, manifest


@pytest.mark.parametrize(
    ("words", "chunks", "deadline_s", "within"),
    [("f32", 2, 0.0, 1e-5), ("i8", 1, 0.0, 2e-2), ("means1.0001", 2, 0.0, 1e-5), ("f32", 1, 20.0, 1e-5)],
)
@pytest.mark.parametrize("lead", [0, 2])
def test_keys_and_values_for_one_row_go_to_the_lead_alone(
    lead: int,
    words: str,
    chunks: int,
    deadline_s: float,
    within: float,
    classifier: tuple[Path, Path, Manifest],
    tmp_path: Path,
) -> None:
    model, depot, manifest = classifier
    sharding = next(s for s in manifest.shardings if s.name == "sequence")
    boards = [BoardId(name) for name in ("a", "b", "c")]
    told = programs(sharding, boards, boards[lead], (0.5, 0.25, 0.25), codec_of(words), chunks, deadline_s)
    told = {boards[lead]: told[boards[lead]], **told}  # the cluster's lead is its first
    cluster = Cluster(tmp_path, depot, manifest, told)
    try:
        for batch, tokens in ((1, 23), (3, 17)):
            ids = np.random.default_rng(tokens).integers(0, 100, (batch, tokens))
            want = open_session(model).run({"input_ids": ids})["logits"]
            got = cluster.ask({"input_ids": ids}, ["logits"])["logits"]
            assert np.abs(np.subtract(got, want)).max() <= within * np.abs(want).max()
        assert cluster.settled(), "nobody waits for the lead"
        assert not any(board.peers.admission.foreign for board in cluster.boards.values())
    finally:
        cluster.stop()


def test_codecs_are_one_for_each_exchange(bundle: tuple[Path, Path, Manifest], tmp_path: Path) -> None:
    model, depot, manifest = bundle
    sharding = manifest.shardings[0]
    boards = [BoardId("a"), BoardId("b")]
    with pytest.raises(PlanError, match=f"expected {sharding.exchanges} codecs, got 1"):
        programs(sharding, boards, boards[0], (0.5, 0.5), [codec_of("i8")])
    chosen = [codec_of(("i8", "means1.0001")[number % 2]) for number in range(sharding.exchanges)]
    cluster = Cluster(tmp_path, depot, manifest, programs(sharding, boards, boards[0], (0.5, 0.5), chosen))
    original = open_session(model)
    try:
        asked = question(1, 20, 0)
        got, want = cluster.ask(asked, original.outputs), original.run(asked)
        for output, array in want.items():
            assert np.allclose(got[output], array, atol=2e-2 * np.abs(array).max())
    finally:
        cluster.stop()


@pytest.mark.parametrize(
    "recipe", ["vq8x16", "i4,vq4x16x2-keep1.2", "means2-vq8x16-keep1.1", "means2-i4,vq8x16"]
)
def test_codes_are_looked_up_in_books_that_boards_fetched(
    recipe: str, bundle: tuple[Path, Path, Manifest], tmp_path: Path
) -> None:
    """Boards that talk over sockets answer bit by bit what the same programs answer in one process."""
    _, depot, manifest = bundle
    sharding = manifest.shardings[0]
    boards = [BoardId(name) for name in ("a", "b", "c")]
    store = Store(depot)
    random = np.random.default_rng(4)
    codecs = recipe_of(recipe, sharding.exchanges)
    tags = [tag for tag, s in enumerate(sharding.steps) if isinstance(s, ShardCollective) and s.among_all]
    records, books = [], {}
    for tag, codec in zip(tags, codecs, strict=True):
        step = sharding.steps[tag]
        assert isinstance(step, ShardCollective)
        for tensor in (spec.name for spec in step.tensors) if codec.groups else ():
            shape = (codec.stages, codec.groups, codec.codes, 32 // codec.groups)
            table = random.standard_normal(shape).astype("<f4")
            records.append(
                Codebook(
                    sharding=sharding.name,
                    tag=tag,
                    tensor=tensor,
                    codec=codec.book,
                    values=32,
                    source=manifest.source_sha256,
                    blob=store.put(table.tobytes()),
                )
            )
            books[tag, tensor] = book_of(codec, table)
    told = programs(sharding, boards, boards[0], (0.5, 0.25, 0.25), codecs)
    with pytest.raises(ModelError, match="there is none"):
        wanted(manifest, told[boards[0]])
    cluster = Cluster(tmp_path, depot, replace(manifest, codebooks=tuple(records)), told)
    opened = Segments(bundle[0].parent / "bundle", {segment.name: segment for segment in sharding.segments})
    by_tag = {tag: {t: book for (at, t), book in books.items() if at == tag} for tag in tags}
    try:
        for seed, (batch, tokens) in enumerate(((1, 23), (2, 17))):
            asked = question(batch, tokens, seed)
            want = play(told, boards[0], asked, opened, Manner(books=by_tag))
            got = cluster.ask(asked, [spec.name for spec in manifest.outputs])
            for name, array in got.items():
                assert np.array_equal(array, want[name])
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
