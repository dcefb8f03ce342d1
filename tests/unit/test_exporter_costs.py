"""Operations and memory of single nodes and small graphs, counted by hand."""

import onnx
import pytest
from onnx import helper

from shoal.exporter.costs import flops, work_bytes
from shoal.exporter.graph import Graph
from shoal.exporter.shapes import Tensor


def tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: Tensor(dtype="float32", sizes=sizes, dims=sizes) for name, sizes in shapes.items()}


def node(operator: str, *reads: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    made = helper.make_node(operator, reads, ["y"], domain=domain)
    made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return made


@pytest.mark.parametrize(
    ("call", "shapes", "count"),
    [
        (node("MatMul", "a", "b"), {"a": (2, 3, 4), "b": (4, 5), "y": (2, 3, 5)}, 2 * 2 * 3 * 5 * 4),
        (node("MatMul", "a", "b"), {"a": (4,), "b": (4,), "y": ()}, 2 * 4),
        (node("Gemm", "a", "b"), {"a": (3, 4), "b": (4, 5), "y": (3, 5)}, 2 * 3 * 5 * 4),
        (node("Gemm", "a", "b", transA=1), {"a": (4, 3), "b": (4, 5), "y": (3, 5)}, 2 * 3 * 5 * 4),
        (
            node("Conv", "a", "w", group=2),
            {"a": (1, 4, 8, 8), "w": (6, 2, 3, 3), "y": (1, 6, 8, 8)},
            2 * 6 * 64 * 2 * 9,
        ),
        (
            node("ConvTranspose", "a", "w"),
            {"a": (1, 4, 8, 8), "w": (4, 3, 2, 2), "y": (1, 3, 16, 16)},
            2 * 4 * 64 * 3 * 4,
        ),
        (
            node("Attention", "q", "k", "v"),
            {"q": (1, 6, 32), "k": (1, 9, 32), "v": (1, 9, 32), "y": (1, 6, 32)},
            4 * 6 * 9 * 32,
        ),
        (
            node("Attention", "x", "w", domain="com.microsoft"),
            {"x": (1, 6, 32), "w": (32, 96), "y": (1, 6, 32)},
            2 * 6 * 32 * 96 + 4 * 6 * 6 * 32,
        ),
        (
            node("Einsum", "a", "b", equation="bij,jk->bik"),
            {"a": (2, 3, 4), "b": (4, 5), "y": (2, 3, 5)},
            240,
        ),
        (
            node("LSTM", "x", "w", "r"),
            {"x": (7, 2, 8), "w": (1, 64, 8), "r": (1, 64, 16), "y": (7, 1, 2, 16)},
            2 * 14 * (64 * 8 + 64 * 16),
        ),
        (node("Relu", "a"), {"a": (2, 3), "y": (2, 3)}, 6),
        (node("SequenceAt", "s", "i"), {"y": (2, 3)}, 6),
    ],
)
def test_operations(call: onnx.NodeProto, shapes: dict[str, tuple[int, ...]], count: int) -> None:
    assert flops(call, tensors(**shapes)) == count


def test_work_memory_is_what_is_alive_at_the_worst_moment() -> None:
    graph = Graph(
        inputs=("x",),
        outputs=("y",),
        reads=(("x", "w"), ("a",), ("a", "b"), ("c",)),
        makes=(("a",), ("b",), ("c",), ("y",)),
        measuring=0,
        copied=0,
    )
    sizes = tensors(x=(1,), w=(1000,), a=(10,), b=(20,), c=(30,), y=(5,))
    assert work_bytes(graph, 0b1111, sizes) == 4 * (1 + 10 + 20 + 30)
    assert work_bytes(graph, 0b0001, sizes) == 4 * (1 + 10)
    assert work_bytes(graph, 0b1000, sizes) == 4 * (30 + 5)
