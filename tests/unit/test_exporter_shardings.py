"""Ways to run a model on several boards: which are found, that they answer alike, and why others are not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from shoal.codec import codec_of
from shoal.exporter import shardings
from shoal.exporter.divide import divide
from shoal.exporter.division import Division, NotDivisibleError
from shoal.exporter.export import export
from shoal.exporter.prove import Segments
from shoal.exporter.together import play
from shoal.manifest import Manifest, ShardCollective, Sharding, ShardRun, ShardStep, Verification
from shoal.profiler.counts import counts, samples
from shoal.program import Collective, Exchange, Run
from shoal.records import Array, BoardId
from shoal.session import open_session
from shoal.sharding import programs
from tests import models
from tests.models import Builder

Written = Callable[[str], tuple[Path, Manifest]]
HIDDEN, HEADS = 32, 4
WIDTH = HIDDEN // HEADS
STACKED = ("gathered", "unbound", "interleaved")
"""Ways to take queries, keys and values apart when they have become heads already."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a Transformer is written."""

    tokens: int | str = "tokens"
    batch: int | str = "batch"
    opset: int = 17
    causal: bool = False
    kv_heads: int = HEADS
    rotary: bool = False
    fused_qkv: str = ""
    """How queries, keys and values are taken out of what one product makes; empty: each has its own."""
    gemm: bool = False
    norm: str = "layer"
    parallel: bool = False
    bias: bool = True
    attention: str = "plain"
    window: int = 0
    measured_scale: bool = False
    """Queries and keys are scaled by what is read off the sizes of the queries."""
    sizes: str = "copied"
    """How Reshape is told of sizes that vary: copied (0), written or computed."""
    picks: int | tuple[int, ...] = ()
    """The rows that the head reads; none: all of them."""


class Writer:
    """Writes decoder and encoder blocks in a given style."""

    def __init__(self, style: Style) -> None:
        self.style, self.b = style, Builder(seed=3)

    def linear(self, x: str, read: int, made: int) -> str:
        b = self.b
        if not self.style.gemm:
            return b.linear(x, read, made) if self.style.bias else b.node("MatMul", x, b.weight(read, made))
        flat = b.node("Reshape", x, b.integers(-1, read))
        product = b.node("Gemm", flat, b.weight(made, read), b.weight(made), transB=1)
        return b.node("Reshape", product, self.sizes_like(x, made))

    def sizes_like(self, x: str, *last: int) -> str:
        """Return the sizes of `x` with others in the place of its last."""
        b, style = self.b, self.style
        if style.sizes == "computed":
            shape = b.node("Shape", x)
            ahead = b.node("Slice", shape, b.integers(0), b.integers(2))
            return b.node("Concat", ahead, b.integers(*last), axis=0)
        if style.sizes == "written":
            return b.integers(-1, int(style.tokens), *last)
        return b.integers(0, 0, *last)

    def norm(self, x: str) -> str:
        b = self.b
        if self.style.norm == "layer":
            return b.norm(x, HIDDEN)
        square = b.node("Mul", x, x)
        if self.style.opset >= 18:
            mean = b.node("ReduceMean", square, b.integers(-1), keepdims=1)
        else:
            mean = b.node("ReduceMean", square, axes=[-1], keepdims=1)
        root = b.node("Sqrt", b.node("Add", mean, b.constant(1e-5)))
        return b.node("Mul", b.node("Div", x, root), b.weight(HIDDEN, scale=1.0))

    def heads(self, x: str, count: int) -> str:
        apart = self.b.node("Reshape", x, self.sizes_like(x, count, WIDTH))
        return self.b.node("Transpose", apart, perm=[0, 2, 1, 3])

    def projected(self, x: str) -> tuple[str, str, str]:
        b, kv = self.b, self.style.kv_heads * WIDTH
        if not self.style.fused_qkv:
            return self.linear(x, HIDDEN, HIDDEN), self.linear(x, HIDDEN, kv), self.linear(x, HIDDEN, kv)
        made = self.linear(x, HIDDEN, HIDDEN + 2 * kv)
        if self.style.fused_qkv == "split":
            q, k, v = self.split(made, 2, HIDDEN, kv, kv)
            return q, k, v
        ends = (0, HIDDEN, HIDDEN + kv, HIDDEN + 2 * kv)
        q, k, v = (
            b.node("Slice", made, b.integers(start), b.integers(stop), b.integers(2))
            for start, stop in pairwise(ends)
        )
        return q, k, v

    def split(self, x: str, axis: int, *sizes: int) -> list[str]:
        first = self.b.node("Split", x, self.b.integers(*sizes), axis=axis)
        names = [f"{first}_{index}" for index in range(len(sizes))]
        self.b._nodes[-1].output[:] = names
        return names

    def stacked(self, x: str) -> list[str]:
        """Return heads of queries, keys and values that lie behind one another in one tensor."""
        b, made = self.b, self.linear(x, HIDDEN, 3 * HIDDEN)
        if self.style.fused_qkv == "interleaved":
            apart = b.node("Reshape", made, self.sizes_like(x, HEADS, 3 * WIDTH))
            return self.split(b.node("Transpose", apart, perm=[0, 2, 1, 3]), 3, WIDTH, WIDTH, WIDTH)
        apart = b.node("Reshape", made, self.sizes_like(x, 3, HEADS, WIDTH))
        heads = b.node("Transpose", apart, perm=[2, 0, 3, 1, 4])
        if self.style.fused_qkv == "unbound":
            return [b.node("Squeeze", one, b.integers(0)) for one in self.split(heads, 0, 1, 1, 1)]
        return [b.node("Gather", heads, b.constant(index, np.int64), axis=0) for index in range(3)]

    def scaled(self, q: str, k: str) -> tuple[str, str]:
        """Return both scaled as torch's older exporter writes it."""
        b = self.b
        width = b.node("Cast", b.node("Slice", b.node("Shape", q), b.integers(-1), b.integers(9)), to=1)
        scale = b.node("Sqrt", b.node("Div", b.constant([1.0]), b.node("Sqrt", width)))
        return b.node("Mul", q, scale), b.node("Mul", k, scale)

    def turned(self, x: str, cos: str, sin: str) -> str:
        b = self.b
        half = WIDTH // 2
        first = b.node("Slice", x, b.integers(0), b.integers(half), b.integers(3))
        second = b.node("Slice", x, b.integers(half), b.integers(WIDTH), b.integers(3))
        turned = b.node("Concat", b.node("Neg", second), first, axis=3)
        return b.node("Add", b.node("Mul", x, cos), b.node("Mul", turned, sin))

    def repeated(self, x: str) -> str:
        times = HEADS // self.style.kv_heads
        if times == 1:
            return x
        b = self.b
        wide = b.node("Unsqueeze", x, b.integers(2))
        wide = b.node("Expand", wide, b.integers(1, 1, times, 1, 1))
        return b.node("Reshape", wide, b.integers(0, HEADS, -1, WIDTH))

    def attention(self, x: str, bias: str, angles: tuple[str, str] | None) -> str:
        b, style = self.b, self.style
        q, k, v = self.stacked(x) if style.fused_qkv in STACKED else self.projected(x)
        if style.attention == "multi-head":
            inputs = [q, k, v, "", "", bias] if bias else [q, k, v]
            mixed = b.node("MultiHeadAttention", *inputs, num_heads=HEADS)
            b._nodes[-1].domain = "com.microsoft"
            return self.linear(mixed, HIDDEN, HIDDEN)
        if style.fused_qkv not in STACKED:
            q, k, v = self.heads(q, HEADS), self.heads(k, style.kv_heads), self.heads(v, style.kv_heads)
        if angles:
            q, k = self.turned(q, *angles), self.turned(k, *angles)
        if style.attention == "standard":
            mixed = b.node("Attention", q, k, v, *([bias] if bias else []))
        else:
            k, v = self.repeated(k), self.repeated(v)
            if style.measured_scale:
                q, k = self.scaled(q, k)
            scores = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
            if not style.measured_scale:
                scores = b.node("Div", scores, b.constant(WIDTH**0.5))
            scores = b.node("Add", scores, bias) if bias else scores
            mixed = b.node("MatMul", b.node("Softmax", scores, axis=-1), v)
        tokens_first = b.node("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.linear(
            b.node("Reshape", tokens_first, self.sizes_like(tokens_first, HIDDEN)), HIDDEN, HIDDEN
        )

    def feed_forward(self, x: str) -> str:
        inner = self.b.gelu(self.linear(x, HIDDEN, 2 * HIDDEN))
        return self.linear(inner, 2 * HIDDEN, HIDDEN)

    def mask(self, like: str) -> str:
        """Return a bias that hides what is behind each token, or too far away."""
        b = self.b
        count = b.node("Gather", b.node("Shape", like), b.constant(1, np.int64))
        places = b.node("Range", b.constant(0, np.int64), count, b.constant(1, np.int64))
        rows = b.node("Unsqueeze", places, b.integers(1))
        away = b.node("Sub", rows, places)
        seen = b.node("GreaterOrEqual", away, b.constant(0, np.int64))
        if self.style.window:
            near = b.node("Less", b.node("Abs", away), b.constant(self.style.window, np.int64))
            seen = b.node("And", seen, near) if self.style.causal else near
        bias = b.node("Where", seen, b.constant(0.0), b.constant(-1e4))
        return b.node("Unsqueeze", bias, b.integers(0, 1))

    def angles(self, like: str) -> tuple[str, str]:
        b = self.b
        count = b.node("Shape", like)
        stop = b.node("Slice", count, b.integers(1), b.integers(2))
        table = np.arange(64)[:, None] / 10.0 ** (np.arange(WIDTH) / WIDTH)
        cos, sin = (
            b.node("Slice", b.constant(values), b.integers(0), stop, b.integers(0))
            for values in (np.cos(table), np.sin(table))
        )
        return cos, sin

    def model(self, layers: int = 2) -> onnx.ModelProto:
        b, style = self.b, self.style
        ids = b.input("input_ids", [style.batch, style.tokens], TensorProto.INT64)
        x = b.node("Gather", b.weight(50, HIDDEN, scale=1.0), ids)
        bias = self.mask(ids) if style.causal or style.window else ""
        angles = self.angles(ids) if style.rotary else None
        for _ in range(layers):
            inner = self.norm(x)
            mixed = self.attention(inner, bias, angles)
            if style.parallel:
                x = b.node("Add", x, b.node("Add", mixed, self.feed_forward(inner)))
            else:
                x = b.node("Add", x, mixed)
                x = b.node("Add", x, self.feed_forward(self.norm(x)))
        x, rows = self.norm(x), [style.tokens]
        if style.picks != ():
            x = b.node("Gather", x, b.constant(style.picks, np.int64), axis=1)
            rows = [] if isinstance(style.picks, int) else [len(style.picks)]
        b.node("MatMul", x, b.weight(HIDDEN, 11), output="logits")
        model = b.model({"logits": [style.batch, *rows, 11]}, opset=style.opset)
        if style.opset > 20:
            model.ir_version = 10
        if style.attention == "multi-head":
            model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        return model


STYLES: Mapping[str, Style] = {
    "encoder": Style(),
    "causal": Style(causal=True),
    "static": Style(tokens=14, batch=1, sizes="written"),
    "written sizes": Style(tokens=14, sizes="written"),
    "computed sizes": Style(sizes="computed"),
    "gemm": Style(gemm=True, sizes="computed", causal=True),
    "gemm, fused qkv": Style(gemm=True, fused_qkv="slices", sizes="computed", causal=True),
    "gemm, static": Style(gemm=True, tokens=14, sizes="written"),
    "grouped heads": Style(kv_heads=2, causal=True),
    "one key head": Style(kv_heads=1),
    "rotary": Style(rotary=True, causal=True, kv_heads=2, norm="rms", bias=False),
    "fused qkv": Style(fused_qkv="slices"),
    "fused qkv, split": Style(fused_qkv="split", measured_scale=True, kv_heads=2, causal=True),
    "fused qkv, gathered": Style(fused_qkv="gathered"),
    "fused qkv, unbound": Style(fused_qkv="unbound", gemm=True, sizes="computed", causal=True, picks=-1),
    "fused qkv, interleaved": Style(
        fused_qkv="interleaved", rotary=True, bias=False, tokens=14, sizes="written"
    ),
    "old": Style(opset=14, norm="rms", sizes="computed"),
    "standard attention": Style(attention="standard", opset=23, kv_heads=2),
    "standard attention, causal": Style(attention="standard", opset=23, causal=True),
    "contributed attention": Style(attention="multi-head"),
    "never seen": Style(parallel=True, norm="rms", bias=False, window=4),
    "never seen, causal": Style(parallel=True, norm="rms", bias=False, window=4, causal=True, kv_heads=2),
    "class token": Style(picks=0),
    "class token, gemm, fused qkv": Style(gemm=True, fused_qkv="slices", sizes="computed", picks=0),
    "class token, contributed attention": Style(attention="multi-head", picks=0),
    "two class tokens, written sizes": Style(tokens=14, sizes="written", picks=(0, 1)),
    "last token": Style(rotary=True, causal=True, kv_heads=2, norm="rms", bias=False, picks=-1),
    "last token, never seen": Style(parallel=True, norm="rms", window=4, causal=True, picks=-1),
}


def exported(model: onnx.ModelProto, folder: Path, **arguments: object) -> Manifest:
    onnx.save(model, folder / "model.onnx")
    return export(folder / "model.onnx", folder / "bundle", **arguments)  # type: ignore[arg-type]


def proof(manifest: Manifest, strategy: str) -> Verification:
    return next(found for found in manifest.verification if found.strategy == strategy)


def meetings(manifest: Manifest, name: str) -> list[ShardCollective]:
    return [step for step in sharding(manifest, name).steps if isinstance(step, ShardCollective)]


def sharding(manifest: Manifest, name: str) -> Sharding:
    return next(found for found in manifest.shardings if found.name == name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Export a model of a style of `STYLES`, once; return its folder, which nobody may change."""

    @cache
    def write(name: str) -> tuple[Path, Manifest]:
        folder = tmp_path_factory.mktemp("style")
        return folder, exported(Writer(STYLES[name]).model(), folder)

    return write


@pytest.mark.parametrize("name", STYLES)
def test_every_style_is_divided_by_tokens_and_by_heads(name: str, written: Written) -> None:
    style = STYLES[name]
    _, manifest = written(name)
    for strategy in ("sequence", "tensor"):
        found = proof(manifest, strategy)
        assert found.verified, found.reason
        assert found.max_rel_err <= 1e-5
    assert sharding(manifest, "sequence").causal == style.causal
    assert sharding(manifest, "sequence").exchanges == 2, "one for each layer"
    heads = sharding(manifest, "tensor")
    assert heads.units == HEADS, "not limited by the heads that keys have"
    assert heads.exchanges == (1 if style.parallel else 3), "two for each layer, the last at the lead only"
    for way in (each for each in manifest.shardings if each.strategy == "sequence"):
        assert_queries_are_made_while_rows_travel(way, layers=2 if style.picks == () else 1)


def assert_queries_are_made_while_rows_travel(found: Sharding, layers: int) -> None:
    """Of the first layers: of the last one's few rows the lead alone makes them."""
    segments = {segment.name: segment for segment in found.segments}
    gathers = [at for at, step in enumerate(found.steps) if all_gather(step)]
    assert len(gathers) == 2
    for at in gathers[:layers]:
        gather, run, behind = found.steps[at : at + 3]
        assert isinstance(gather, ShardCollective)
        assert isinstance(run, ShardRun)
        assert isinstance(behind, ShardRun)
        made = {spec.name for spec in gather.made}
        reads = [{spec.name for spec in segments[each.segment].inputs} for each in (run, behind)]
        assert [made & each for each in reads] == [set(), made], f"{found.name}, step {at}"
        assert not run.lead_only
        weights = {blob.size_bytes for blob in segments[run.segment].weights}
        assert 4 * HIDDEN * HIDDEN in weights, "what projects the queries"


def all_gather(step: ShardStep) -> bool:
    return isinstance(step, ShardCollective) and step.among_all and step.kind == "gather"


@pytest.mark.parametrize("name", STYLES)
def test_no_board_runs_a_segment_for_nobody(name: str, written: Written) -> None:
    _, manifest = written(name)
    boards = [BoardId("a"), BoardId("b"), BoardId("c")]
    outputs = {spec.name for spec in manifest.outputs}
    for found in manifest.shardings:
        makes = {segment.name: {spec.name for spec in segment.outputs} for segment in found.segments}
        reads = {segment.name: {spec.name for spec in segment.inputs} for segment in found.segments}
        for board, program in programs(found, boards, boards[1], (0.4, 0.3, 0.3)).items():
            wanted = set(outputs) if board == boards[1] else set[str]()
            for step in reversed(program.steps):
                assert not isinstance(step, Exchange)
                if isinstance(step, Run):
                    assert not wanted.isdisjoint(makes[step.segment]), (found.name, board, step)
                    wanted |= reads[step.segment]
                else:
                    wanted |= set(step.tensors)


@pytest.mark.parametrize("name", [name for name, style in STYLES.items() if style.picks != ()])
def test_few_rows_of_the_last_block_are_made_by_the_lead_alone(name: str, written: Written) -> None:
    """The others end when they have handed over its keys and values, in the codec of the blocks before."""
    _, manifest = written(name)
    boards = [BoardId("a"), BoardId("b"), BoardId("c")]
    found = sharding(manifest, "sequence")
    told = programs(found, boards, boards[0], (0.4, 0.3, 0.3), codec_of("means2-i8"))
    gathers = [
        s for s in told[boards[1]].steps if isinstance(s, Collective) and s.kind == "gather" and not s.rows
    ]
    assert [(s.root, s.codec.rate) for s in gathers] == [(None, 2), (boards[0], 2)]
    behind = told[boards[1]].steps.index(gathers[-1])
    assert not any(isinstance(step, Run) for step in told[boards[1]].steps[behind:])
    last = told[boards[0]].steps[-1]
    assert isinstance(last, Run)
    weights = {s.name: sum(blob.size_bytes for blob in s.weights) for s in found.segments}
    assert weights[last.segment] >= 4 * 4 * HIDDEN * HIDDEN, "the feed-forward layer is in it"


@pytest.mark.parametrize("name", ["last token", "two class tokens, written sizes"])
@pytest.mark.parametrize("lead", [0, 1])
def test_any_board_can_lead_where_few_rows_are_needed(name: str, lead: int, written: Written) -> None:
    """Behind the lead's own last row there are others, which the last token attends to."""
    folder, manifest = written(name)
    boards = [BoardId("a"), BoardId("b"), BoardId("c")]
    asked: dict[str, Array] = {"input_ids": np.random.default_rng(4).integers(0, 50, (2, 14))}
    want = open_session(folder / "model.onnx").run(asked)["logits"]
    for found in manifest.shardings:
        opened = Segments(folder / "bundle", {segment.name: segment for segment in found.segments})
        for codec in ("f32", "means1.0001") if found.strategy == "sequence" else ("f32",):
            told = programs(found, boards, boards[lead], (0.4, 0.3, 0.3), codec_of(codec))
            got = play(told, boards[lead], asked, opened)["logits"]
            assert np.allclose(got, want, rtol=0, atol=1e-4 * float(np.max(want)))


def test_keys_and_values_are_all_that_is_gathered(tmp_path: Path) -> None:
    manifest = exported(Writer(Style(kv_heads=2, causal=True)).model(), tmp_path, sizes={"tokens": 10})
    steps = [step for step in meetings(manifest, "sequence") if step.kind == "gather"]
    gathers = [step for step in steps if not step.to_lead]
    assert [len(step.made) for step in gathers] == [2, 2]
    for step in gathers:
        assert sum(spec.size_bytes(manifest.sizes) for spec in step.made) == 2 * 10 * 2 * WIDTH * 4
    assert [step.to_lead for step in steps] == [False, False, True], "the answer goes to the lead"


def test_hidden_rows_are_gathered_where_they_are_fewer_bytes(tmp_path: Path, written: Written) -> None:
    whole = exported(Writer(Style()).model(), tmp_path, sizes={"tokens": 10})
    for name, expected in (("sequence", 2 * HIDDEN), ("sequence-hidden", HIDDEN)):
        step = next(s for s in meetings(whole, name) if s.kind == "gather" and not s.to_lead)
        assert sum(spec.size_bytes(whole.sizes) for spec in step.made) == 10 * expected * 4
    _, few = written("one key head")
    assert [s.name for s in few.shardings] == ["sequence", "tensor"], "two of one head are less than all"


@pytest.mark.parametrize("name", ["causal", "rotary", "gemm, fused qkv"])
def test_hidden_rows_are_gathered_at_each_layer_and_not_again(name: str, written: Written) -> None:
    """Every board can make the embeddings, so all could be made anew of what the first layer gathered."""
    _, manifest = written(name)
    gathers = [step for step in meetings(manifest, "sequence-hidden") if step.kind == "gather"]
    assert [step.to_lead for step in gathers] == [False, False, True]
    assert [spec.name for spec in gathers[-1].made] == ["logits"]


def test_a_gather_that_cannot_come_earlier_costs_that_way_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*given: object, points: Sequence[str] = (), **named: object) -> Division:
        if points:
            raise NotDivisibleError("tensor x: is needed whole")
        return divide(*given, points=points, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(shardings, "divide", refuses)
    manifest = exported(Writer(Style()).model(), tmp_path)
    assert [s.name for s in manifest.shardings] == ["sequence", "tensor"]
    assert proof(manifest, "sequence-hidden").reason == "tensor x: is needed whole"


def test_only_the_first_row_goes_to_the_lead_for_a_class_token(tmp_path: Path) -> None:
    b = Builder()
    x = b.linear(b.input("x", ["batch", 9, HIDDEN]), HIDDEN, HIDDEN)
    x = b.node("Add", x, b.attention(b.norm(x, HIDDEN), HIDDEN, HEADS))
    x = b.node("Add", x, b.feed_forward(b.norm(x, HIDDEN), HIDDEN))
    first = b.node("Gather", b.norm(x, HIDDEN), b.constant(0, np.int64), axis=1)
    b.node("MatMul", first, b.weight(HIDDEN, 5), output="logits")
    manifest = exported(b.model({"logits": ["batch", 5]}), tmp_path)
    last = meetings(manifest, "sequence")[-1]
    assert (last.to_lead, last.rows, last.made[0].shape) == (True, (0, 1), ("batch", 1, HIDDEN))


@pytest.mark.parametrize(("vocabulary", "handed"), [(8, "input_ids"), (5000, "gather_0")])
def test_ids_are_handed_out_if_their_table_is_small(vocabulary: int, handed: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(models.tiny_transformer(layers=4, tokens="tokens", vocabulary=vocabulary), model)
    manifest = export(model, tmp_path / "bundle", sizes={"tokens": 16})
    for sharding in manifest.shardings[:2]:
        scatter = next(s for s in sharding.steps if isinstance(s, ShardCollective) and s.kind == "scatter")
        assert [spec.name for spec in scatter.tensors] == [handed]
        boards = [segment for segment in sharding.segments if "ahead" not in segment.name]
        table = vocabulary * 32 * 4
        assert any(blob.size_bytes == table for s in boards for blob in s.weights) == (handed == "input_ids")


def test_a_mean_over_tokens_is_added_up_at_the_lead(tmp_path: Path) -> None:
    manifest = exported(models.tiny_transformer(), tmp_path)
    last = meetings(manifest, "sequence")[-1]
    assert (last.kind, last.to_lead, last.made[0].shape) == ("reduce", True, ("batch", 32))
    assert proof(manifest, "sequence").verified


WEIGHTS = st.lists(st.integers(1, 8), min_size=2, max_size=5)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("causal")
    return folder, exported(Writer(Style(causal=True, rotary=True, kv_heads=2)).model(), folder)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=WEIGHTS, tokens=st.integers(5, 40), batch=st.integers(1, 3), lead=st.integers(0, 4))
def test_any_split_answers_like_the_model(
    weights: Sequence[int], tokens: int, batch: int, lead: int, causal: tuple[Path, Manifest]
) -> None:
    folder, manifest = causal
    shares = tuple(weight / sum(weights) for weight in weights)
    boards = [BoardId(f"b{index}") for index in range(len(shares))]
    asked: dict[str, Array] = {"input_ids": np.random.default_rng(tokens).integers(0, 50, (batch, tokens))}
    want = open_session(folder / "model.onnx").run(asked)["logits"]
    for found in manifest.shardings:
        if len(boards) > found.units:
            continue
        first = boards[lead % len(boards)]
        told = programs(found, boards, first, shares)
        opened = Segments(folder / "bundle", {segment.name: segment for segment in found.segments})
        got = play(told, first, asked, opened)["logits"]
        assert np.allclose(got, want, rtol=0, atol=1e-4 * float(np.max(want)))


@pytest.mark.parametrize("name", ["causal", "rotary", "last token", "last token, never seen"])
def test_segments_run_at_the_counts_at_which_they_are_timed(name: str, written: Written) -> None:
    """Also those of which a board attends to no more than its own last row; else no plan would divide it."""
    folder, manifest = written(name)
    for segment in (each for sharding in manifest.shardings for each in sharding.segments if not each.units):
        session = open_session(folder / "bundle" / f"{segment.name}.onnx")
        for each in counts(manifest, segment):
            session.run(samples(segment, each.sizes))


def test_a_causal_board_needs_nothing_from_those_behind_it(causal: tuple[Path, Manifest]) -> None:
    """Tokens of later boards are changed: the rows of earlier ones stay the same to the last bit."""
    folder, manifest = causal
    found = sharding(manifest, "sequence")
    boards = [BoardId("a"), BoardId("b"), BoardId("c")]
    told = programs(found, boards, boards[0], (0.4, 0.3, 0.3))
    opened = Segments(folder / "bundle", {segment.name: segment for segment in found.segments})
    asked = np.random.default_rng(0).integers(0, 50, (1, 20))
    changed = asked.copy()
    changed[0, 14:] = 7
    one, other = (play(told, boards[0], {"input_ids": ids}, opened)["logits"] for ids in (asked, changed))
    assert np.array_equal(one[:, :14], other[:, :14])
    assert not np.array_equal(one[:, 14:], other[:, 14:])


def test_a_network_without_tokens_says_what_stands_in_the_way(tmp_path: Path) -> None:
    manifest = exported(models.tiny_cnn(), tmp_path)
    assert [v.strategy for v in manifest.verification if v.verified] == ["local", "pipeline", "replicate"]
    assert proof(manifest, "sequence").reason
    assert manifest.shardings == ()


def recurrent() -> onnx.ModelProto:
    b = Builder()
    x = b.input("x", [12, "batch", 8])
    made = b.node("LSTM", x, b.weight(1, 64, 8), b.weight(1, 64, 16), hidden_size=16)
    b.node("Squeeze", made, b.integers(1), output="y")
    return b.model({"y": [12, "batch", 16]})


def windows() -> onnx.ModelProto:
    """Return attention within windows that a Reshape makes of the tokens."""
    b = Builder()
    x = b.linear(b.input("x", ["batch", 16, HIDDEN]), HIDDEN, HIDDEN)
    for _ in range(2):
        apart = b.node("Reshape", b.norm(x, HIDDEN), b.integers(-1, 4, HIDDEN))
        mixed = b.attention(apart, HIDDEN, HEADS)
        x = b.node("Add", x, b.node("Reshape", mixed, b.integers(-1, 16, HIDDEN)))
        x = b.node("Add", x, b.feed_forward(b.norm(x, HIDDEN), HIDDEN))
    b.node("Identity", x, output="y")
    return b.model({"y": ["batch", 16, HIDDEN]})


def depends_on_values() -> onnx.ModelProto:
    b = Builder()
    x = b.input("x", ["batch", 8])
    kept = b.node(
        "Compress",
        b.node("Mul", x, b.weight(8)),
        b.node("Greater", b.node("ReduceMax", x, axes=[1], keepdims=0), b.constant(0.0)),
        axis=0,
    )
    b.node("ReduceSum", b.node("MatMul", kept, b.weight(8, 8)), b.integers(0), keepdims=0, output="y")
    return b.model({"y": [8]})


def branches() -> onnx.ModelProto:
    """Return a Transformer whose attention depends on a condition."""
    b = Builder()
    x = b.linear(b.input("x", ["batch", 9, HIDDEN]), HIDDEN, HIDDEN)
    large = b.node("Greater", b.node("ReduceMax", x, keepdims=0), b.constant(0.0))
    branch = [
        onnx.helper.make_graph(
            [onnx.helper.make_node(operator, [x], [f"{operator}_out"])],
            operator,
            [],
            [onnx.helper.make_tensor_value_info(f"{operator}_out", TensorProto.FLOAT, None)],
        )
        for operator in ("Relu", "Neg")
    ]
    x = b.node("If", large, then_branch=branch[0], else_branch=branch[1])
    x = b.node("Add", x, b.attention(b.norm(x, HIDDEN), HIDDEN, HEADS))
    b.node("Identity", b.feed_forward(x, HIDDEN), output="y")
    return b.model({"y": ["batch", 9, HIDDEN]})


def test_branches_are_left_to_the_lead(tmp_path: Path) -> None:
    manifest = exported(branches(), tmp_path)
    assert manifest.verified("local")
    found = proof(manifest, "sequence")
    assert found.verified or "has graphs inside it" in found.reason


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (recurrent, "LSTM"),
        (windows, "operator Reshape"),
        (depends_on_values, "no tensor has an axis"),
    ],
)
def test_what_cannot_be_divided_is_named(
    make: Callable[[], onnx.ModelProto], words: str, tmp_path: Path
) -> None:
    manifest = exported(make(), tmp_path)
    assert manifest.verified("local")
    found = proof(manifest, "sequence")
    assert found.verified or words in found.reason, found.reason
    for each in manifest.verification:
        assert each.verified or each.reason


def test_the_same_model_gives_the_same_bytes(written: Written, tmp_path: Path) -> None:
    folder, _ = written("causal")
    exported(Writer(STYLES["causal"]).model(), tmp_path)
    files = []
    for bundle in (folder / "bundle", tmp_path / "bundle"):
        files.append({str(p.relative_to(bundle)): p.read_bytes() for p in bundle.rglob("*") if p.is_file()})
    assert files[0] == files[1]
