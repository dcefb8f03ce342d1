"""The graphs of `benchmarks.parts`: attention at once, and over parts that are merged by log-sum-exp."""

import onnx

from benchmarks.attention import HEADS, HIDDEN, WIDTH
from shoal.program import LOG_COUNTS
from tests.models import Builder, Shape

MIXED: Shape = (1, HEADS, "own", WIDTH)
LOG_SUM: Shape = (1, HEADS, "own", 1)
"""Of the exponentials of a row's scores."""
SCORES: Shape = (1, HEADS, "own", "part")


def scores_of(b: Builder, *, counted: bool, output: str = "") -> str:
    """Add the scores of the board's rows `q` at the rows `k` of a part."""
    q, k = b.input("q", MIXED), b.input("k", [1, "part", HEADS, WIDTH])
    product = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 3, 1]))
    scaled = b.node("Div", product, b.constant(WIDTH**0.5), output="" if counted else output)
    return b.node("Add", scaled, b.input(LOG_COUNTS, ["part"]), output=output) if counted else scaled


def mixed_of(b: Builder, shares: str, rows: str = "part", output: str = "") -> str:
    """Add what the shares make of the rows `v`."""
    v = b.input("v", [1, rows, HEADS, WIDTH])
    return b.node("MatMul", shares, b.node("Transpose", v, perm=[0, 2, 1, 3]), output=output)


def flat(b: Builder, mixed: str) -> onnx.ModelProto:
    """Return the model that ends with the heads of each row side by side."""
    b.node("Reshape", b.node("Transpose", mixed, perm=[0, 2, 1, 3]), b.integers(0, 0, HIDDEN), output="rows")
    return b.model({"rows": (1, "own", HIDDEN)})


def whole(*, counted: bool) -> onnx.ModelProto:
    """Return attention in one graph."""
    b = Builder()
    return flat(b, mixed_of(b, b.node("Softmax", scores_of(b, counted=counted), axis=-1)))


def part(*, counted: bool, before: bool, last: bool) -> onnx.ModelProto:
    """Return attention to a part: what it mixes, and the log-sum-exp of its scores.

    `before`: merged with those of the parts before it; `last`: no part comes behind it.  The largest share
    of a row is exp(largest score - log-sum-exp), so the latter costs two maxima beside what Softmax does.
    """
    b = Builder()
    scores = scores_of(b, counted=counted)
    shares = b.node("Softmax", scores, axis=-1)
    most = [b.node("ReduceMax", y, axes=[-1], keepdims=1) for y in (scores, shares)]
    made: dict[str, Shape] = {"mixed": MIXED, "log_sum": LOG_SUM}
    if not before:
        b.node("Sub", most[0], b.node("Log", most[1]), output="log_sum")
        mixed_of(b, shares, output="mixed")
        return b.model(made)
    log_sum = b.node("Sub", most[0], b.node("Log", most[1]))
    old, old_sum = b.input("old", MIXED), b.input("old_sum", LOG_SUM)
    beyond = b.node("Sub", log_sum, old_sum)
    change = b.node("Mul", b.node("Sub", mixed_of(b, shares), old), b.node("Sigmoid", beyond))
    if last:
        return flat(b, b.node("Add", old, change))
    b.node("Add", old, change, output="mixed")
    b.node("Add", old_sum, b.node("Softplus", beyond), output="log_sum")
    return b.model(made)


def scores_alone() -> onnx.ModelProto:
    """Return the scores of the board's own rows."""
    b = Builder()
    scores_of(b, counted=False, output="scores")
    return b.model({"scores": SCORES})


def joined(*, counted: bool) -> onnx.ModelProto:
    """Return the rest of that: scores of the others' rows, and all behind them."""
    b = Builder()
    own = b.input("scores", (1, HEADS, "own", "there"))
    scores = b.node("Concat", own, scores_of(b, counted=counted), axis=-1)
    return flat(b, mixed_of(b, b.node("Softmax", scores, axis=-1), "all"))


def queries() -> onnx.ModelProto:
    """Return what is computed today while rows come: the product for Q."""
    b = Builder()
    b.node("Identity", b.linear(b.input("x", [1, "own", HIDDEN]), HIDDEN, HIDDEN), output="q")
    return b.model({"q": (1, "own", HIDDEN)})
