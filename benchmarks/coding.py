"""What codecs cost a board, against what it computes: `python -m benchmarks.coding`.

A board of so many encodes the keys and values of its rows and decodes those of the others, once for each
layer; the block that it computes meanwhile is that of a ViT-B (12 heads of 64, four times as wide inside),
for its own rows, which attend to all.  One thread each, in its processor time.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read once, when numpy is imported

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.record import spread, write
from shoal.book import Book, book_of
from shoal.codec import Codec, codec_of
from shoal.coding import decode, encode, rows_of
from shoal.records import Array
from shoal.search import by_grid
from shoal.session import Session, open_session

HEADS, WIDTH = 12, 64
HIDDEN = HEADS * WIDTH
TURNS = 9
ALLOWED = 0.03
"""Of the block's compute."""
CASES = ((2, 197), (4, 197), (4, 1024))
WORDS = (
    *("f32", "f16", "i8", "i4", "i4-keep1.4", "means4", "means4-f16", "means10-i8", "means4-i4"),
    *("vq384x16", "vq192x16", "vq32x16", "vq32x256", "vq192x256", "vq32x1024", "vq1x1024", "vq96x256x2"),
    *("means4-vq384x16", "means4-vq192x16", "means4-vq192x256"),
)


def block(folder: Path) -> Session:
    """Return a block of a Transformer without its keys and values: its own rows, and those of all."""
    random = np.random.default_rng(0)
    weights: list[TensorProto] = []

    def weight(*shape: int) -> str:
        values = (random.standard_normal(shape) * 0.02).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{len(weights)}"))
        return str(weights[-1].name)

    def ints(*values: int) -> str:
        weights.append(numpy_helper.from_array(np.array(values, np.int64), f"w{len(weights)}"))
        return str(weights[-1].name)

    nodes = [
        helper.make_node("MatMul", ["x", weight(HIDDEN, HIDDEN)], ["q"]),
        helper.make_node("MatMul", ["x", weight(HIDDEN, HIDDEN)], ["k.own"]),
        helper.make_node("MatMul", ["x", weight(HIDDEN, HIDDEN)], ["v.own"]),
        *(
            node
            for name in ("q", "k", "v")
            for node in (
                helper.make_node("Reshape", [name, ints(0, -1, HEADS, WIDTH)], [f"{name}4"]),
                helper.make_node(
                    "Transpose",
                    [f"{name}4"],
                    [f"{name}h"],
                    perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3],
                ),
            )
        ),
        helper.make_node("MatMul", ["qh", "kh"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "vh"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["rows"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["rows", ints(0, -1, HIDDEN)], ["flat"]),
        helper.make_node("MatMul", ["flat", weight(HIDDEN, HIDDEN)], ["out"]),
        helper.make_node("MatMul", ["out", weight(HIDDEN, 4 * HIDDEN)], ["wide"]),
        helper.make_node("Relu", ["wide"], ["kept"]),
        helper.make_node("MatMul", ["kept", weight(4 * HIDDEN, HIDDEN)], ["y"]),
    ]

    def port(name: str, rows: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, rows, HIDDEN])

    graph = helper.make_graph(
        nodes,
        "block",
        [port("x", "own"), port("k", "all"), port("v", "all")],
        [port("y", "own"), port("k.own", "own"), port("v.own", "own")],
        weights,
    )
    path = folder / "block.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return open_session(path)


def seconds(work: Callable[[], object]) -> dict[str, float]:
    """Return what some work takes, after one turn to warm up."""
    work()
    taken = []
    for _ in range(TURNS):
        begun_s = time.process_time()
        work()
        taken.append(time.process_time() - begun_s)
    return spread(taken)


def book_for(codec: Codec) -> Book | None:
    if not codec.groups:
        return None
    shape = (codec.stages, codec.groups, codec.codes, HIDDEN // codec.groups)
    return book_of(codec, np.random.default_rng(1).standard_normal(shape).astype(np.float32))


def coded(codec: Codec, own: int, others: list[int]) -> tuple[dict[str, float], dict[str, float], int]:
    """Return what a board takes to encode its K and V and to decode the others', and the bytes it sends."""
    book, random = book_for(codec), np.random.default_rng(2)

    def tensor(rows: int) -> NDArray[np.float32]:
        return random.standard_normal((1, rows, HEADS, WIDTH)).astype(np.float32)

    mine = [tensor(own), tensor(own)]
    came = [(rows, encode(codec, tensor(rows), 1, own, book)) for rows in others for _ in range(2)]
    whole: Array = np.empty((1, own + sum(others), HEADS, WIDTH), np.float32)

    def restore() -> None:
        for rows, parts in came:
            place = whole[:, : rows_of(codec, parts, 1, whole)]
            decode(codec, parts, 1, place, codec.split(rows, own)[0], book)

    made = seconds(lambda: [encode(codec, each, 1, 0, book) for each in mine])
    sent = sum(part.nbytes for each in mine for part in encode(codec, each, 1, 0, book))
    return made, seconds(restore), sent


def product_share(codec: Codec, tokens: int) -> float:
    """Return what comparing with all codes takes in operations, as a part of those of the block.

    Of a row: 2 x 768 x codes for each stage of K and of V; 24 x 768^2 for the weights of the block, and
    4 x 768 x tokens for attention.
    """
    if not codec.groups or by_grid(codec, HIDDEN // codec.groups):
        return 0.0
    return 2 * 2 * codec.codes * codec.stages / codec.rate / (24 * HIDDEN + 4 * tokens)


def copied_s(size_bytes: int) -> dict[str, float]:
    """Return how long it takes to copy so many bytes: what `shoal.coordinator.work` counts in."""
    source, target = np.ones(size_bytes // 4, np.float32), np.empty(size_bytes // 4, np.float32)
    return seconds(lambda: np.copyto(target, source))


def main() -> None:
    """Time all codecs in all cases, and write what came of it."""
    rows = []
    with TemporaryDirectory() as folder:
        session = block(Path(folder))
        for boards, tokens in CASES:
            own = tokens // boards
            others = [own] * (boards - 1)
            random = np.random.default_rng(3)
            shapes = {"x": own, "k": tokens, "v": tokens}
            fed = {n: random.standard_normal((1, r, HIDDEN)).astype(np.float32) for n, r in shapes.items()}
            computed = seconds(lambda fed=fed: session.run(fed))  # type: ignore[misc]
            copied = copied_s(2 * own * HIDDEN * 4)
            for words in WORDS:
                encode_s, decode_s, sent = coded(codec_of(words), own, others)
                share = (encode_s["median"] + decode_s["median"]) / computed["median"]
                rows.append(
                    {
                        "boards": boards,
                        "tokens": tokens,
                        "codec": words,
                        "sent_bytes": sent,
                        "encode_s": encode_s,
                        "decode_s": decode_s,
                        "block_s": computed,
                        "copy_s": copied,
                        "share": share,
                        "product_share": product_share(codec_of(words), tokens),
                        "allowed": ALLOWED,
                    }
                )
                print(
                    f"{boards} boards, {tokens} tokens, {words}: {encode_s['median'] * 1e6:.0f} us to "
                    f"encode, {decode_s['median'] * 1e6:.0f} us to decode, {share:.1%} of the block"
                )
    print(write("coding", rows))


if __name__ == "__main__":
    main()
