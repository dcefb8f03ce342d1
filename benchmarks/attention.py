"""What a segment costs with its attention written out and with a fused operator in its place.

    python -m benchmarks.attention

A segment is what a board runs between two gathers in a block of ViT-B's shape (768 wide, 12 heads of 64):
attention of its own rows over all that it gathered, the feed-forward layers, and Q, K and V of the next
block.  `plain` is MatMul, Softmax, MatMul as the exporter writes it, `fused` com.microsoft's
MultiHeadAttention over K and V as they were gathered.  Each is also timed with the logarithms of how many
rows the columns stand for (`means`).  One thread, in turn, in processor seconds.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from benchmarks.record import spread, write
from shoal.program import LOG_COUNTS
from shoal.records import Array
from shoal.session import Session, open_session
from tests.models import Builder, Shape

HIDDEN, HEADS = 768, 12
WIDTH = HIDDEN // HEADS
SIZES = ((49, 197), (98, 197), (128, 1024), (256, 1024), (512, 1024), (1024, 1024), (256, 400))
"""Rows of the board, and rows that it gathered."""
REPEATS = 15


def segment(*, fused: bool, means: bool) -> onnx.ModelProto:
    """Return the segment: rows `x` [1, own, 768] and what was gathered in, the next rows, Q, K and V out."""
    b = Builder()
    own: tuple[int | str, ...] = (1, "own", HIDDEN) if fused else (1, HEADS, "own", WIDTH)
    gathered: tuple[int | str, ...] = (1, "all", HIDDEN) if fused else (1, "all", HEADS, WIDTH)
    x, q = b.input("x", [1, "own", HIDDEN]), b.input("q", own)
    k, v = b.input("k", gathered), b.input("v", gathered)
    counts = b.input(LOG_COUNTS, ["all"]) if means else ""
    if fused:
        inputs = [q, k, v]
        if means:
            sizes = [b.node("Slice", b.node("Shape", y), b.integers(1), b.integers(2)) for y in (q, k)]
            inputs += ["", "", b.node("Expand", counts, b.node("Concat", b.integers(1, 1), *sizes, axis=0))]
        mixed = b.node("MultiHeadAttention", *inputs, num_heads=HEADS)
    else:
        scores = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 3, 1]))
        scores = b.node("Div", scores, b.constant(WIDTH**0.5))
        scores = b.node("Add", scores, counts) if means else scores
        heads = b.node(
            "MatMul", b.node("Softmax", scores, axis=-1), b.node("Transpose", v, perm=[0, 2, 1, 3])
        )
        mixed = b.node("Reshape", b.node("Transpose", heads, perm=[0, 2, 1, 3]), b.integers(0, 0, HIDDEN))
    x = b.node("Add", x, b.linear(mixed, HIDDEN, HIDDEN))
    x = b.node("Add", x, b.feed_forward(b.norm(x, HIDDEN), HIDDEN), output="rows")
    inner = b.norm(x, HIDDEN)
    made: dict[str, Shape] = {"rows": (1, "own", HIDDEN), "next_q": own, "next_k": (1, "own", *gathered[2:])}
    made["next_v"] = made["next_k"]
    for name in ("next_q", "next_k", "next_v"):
        flat = b.linear(inner, HIDDEN, HIDDEN)
        apart = flat if fused else b.node("Reshape", flat, b.integers(0, 0, HEADS, WIDTH))
        if name == "next_q" and not fused:
            b.node("Transpose", apart, perm=[0, 2, 1, 3], output=name)
        else:
            b.node("Identity", apart, output=name)
    model = b.model(made)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    for node in model.graph.node:
        if node.op_type == "MultiHeadAttention":
            node.domain = "com.microsoft"
    return model


def inputs_of(own: int, gathered: int, *, fused: bool) -> dict[str, Array]:
    """Return the same random rows in the form that a segment takes."""
    random = np.random.default_rng(own + gathered)
    x, q = (random.standard_normal((1, own, HIDDEN), np.float32) for _ in range(2))
    k, v = (random.standard_normal((1, gathered, HIDDEN), np.float32) for _ in range(2))
    counts = np.log(random.integers(1, 5, gathered)).astype(np.float32)
    if not fused:
        q = np.ascontiguousarray(q.reshape(1, own, HEADS, WIDTH).transpose(0, 2, 1, 3))
        k, v = (rows.reshape(1, gathered, HEADS, WIDTH) for rows in (k, v))
    return {"x": x, "q": q, "k": k, "v": v, LOG_COUNTS: counts}


def row(own: int, gathered: int, *, means: bool, plain: Session, fused: Session) -> dict[str, object]:
    """Return what the two forms cost at one size, and how far their answers are apart."""
    asked = [inputs_of(own, gathered, fused=form) for form in (False, True)]
    apart = np.subtract(*(s.run(inputs)["rows"] for s, inputs in zip((plain, fused), asked, strict=True)))
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for times, session, inputs in zip(taken, (plain, fused), asked, strict=True):
            begun_s = time.process_time()
            session.run(inputs)
            times.append(time.process_time() - begun_s)
    return {
        "own_rows": own,
        "gathered_rows": gathered,
        "means": means,
        "plain_cpu_s": spread(taken[0]),
        "fused_cpu_s": spread(taken[1]),
        "fused_over_plain": spread([f / p for p, f in zip(*taken, strict=True)]),
        "max_abs_err": float(np.max(np.abs(apart))),
    }


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for means in (False, True):
            forms = []
            for fused in (False, True):
                path = Path(name) / f"{means}-{fused}.onnx"
                onnx.save(segment(fused=fused, means=means), path)
                forms.append(open_session(path))
            for own, gathered in SIZES:
                rows.append(row(own, gathered, means=means, plain=forms[0], fused=forms[1]))
                print(json.dumps(rows[-1]))
    print(write("attention", rows))


if __name__ == "__main__":
    main()
