"""The shape of a graph, and the cuts through it: what must hold whatever the graph is."""

import zlib
from collections.abc import Mapping

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from shoal.errors import ModelError
from shoal.exporter.cuts import Costs, choose_cuts, pieces
from shoal.exporter.graph import Graph, Nodes, each
from shoal.exporter.view import view
from tests import models


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Draw a graph in which every node leads to an output, as after pruning."""
    count = draw(st.integers(1, 24))
    inputs = tuple(f"in{i}" for i in range(draw(st.integers(1, 3))))
    reads, measuring = [], 0
    for node in range(count):
        earlier = [*inputs, "weight", *(f"t{other}" for other in range(max(0, node - 8), node))]
        reads.append(tuple(draw(st.lists(st.sampled_from(earlier), max_size=3, unique=True))))
        if len(reads[-1]) == 1 and draw(st.integers(0, 4)) == 0:
            measuring |= 1 << node
    read = {name for names in reads for name in names}
    outputs = [f"t{node}" for node in range(count) if f"t{node}" not in read or draw(st.integers(0, 9)) == 0]
    return Graph(
        inputs=inputs,
        outputs=tuple(outputs),
        reads=tuple(reads),
        makes=tuple((f"t{node}",) for node in range(count)),
        measuring=measuring,
        copied=draw(st.integers(0, 2**count - 1)),
    )


@st.composite
def costs(draw: st.DrawFn, graph: Graph) -> Costs:
    sizes = st.sampled_from([8, 64, 64, 64, 256, 1024])
    known = [name for name in graph.travellers if draw(st.integers(0, 19))]
    return Costs(
        flops=[draw(st.integers(0, 100)) for _ in range(len(graph))],
        weight_bytes=[draw(st.integers(0, 100)) for _ in range(len(graph))],
        tensor_bytes={name: draw(sizes) for name in known},
    )


def value(node: int, graph: Graph, tensors: Mapping[str, int]) -> int:
    """Return what a node makes in a make-believe run: a number that depends on all that it reads."""
    if graph.measuring >> node & 1:
        return node  # the size of a tensor does not depend on what is in it
    return zlib.crc32(repr((node, [tensors[name] for name in graph.reads[node]])).encode())


def run(graph: Graph, nodes: Nodes, tensors: Mapping[str, int]) -> dict[str, int]:
    """Run `nodes` and the copies that they need, on nothing but the tensors that they take."""
    known = {name: tensors[name] for name in graph.taken(nodes)} | {"weight": 1}
    for node in each(nodes | graph.copies_of(nodes)):
        for name in graph.makes[node]:
            known[name] = value(node, graph, known)
    return {name: known[name] for name in graph.handed_on(nodes)}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_segments_run_one_after_the_other_give_what_the_graph_gives(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    found = pieces(graph, choose_cuts(graph, data.draw(costs(graph)), data.draw(st.integers(1, 12))))
    inputs = {name: index for index, name in enumerate(graph.inputs)}

    whole = dict(inputs) | {"weight": 1}
    for node in range(len(graph)):
        whole[f"t{node}"] = value(node, graph, whole)
    tensors = dict(inputs)
    for nodes in found:
        made = run(graph, nodes, tensors)
        assert made.keys().isdisjoint(tensors)
        tensors |= made

    placed = [name for node in each(graph.placed) for name in graph.makes[node]]
    assert {name: tensors[name] for name in graph.outputs if name in placed} == {
        name: whole[name] for name in graph.outputs if name in placed
    }


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_cuts_are_nested_and_closed_and_let_everything_cross(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    cost = data.draw(costs(graph))
    most = data.draw(st.integers(1, 12))
    cuts = choose_cuts(graph, cost, most)
    found = pieces(graph, cuts)

    assert len(found) <= most
    assert sum(found) == graph.placed
    assert sum(nodes.bit_count() for nodes in found) == graph.placed.bit_count()
    for smaller, larger in zip((0, *cuts), (*cuts, graph.placed), strict=True):
        assert smaller & ~larger == 0
    for cut in cuts:
        assert all(graph.sources[node] & ~cut == 0 for node in each(cut))
        assert all(name in cost.tensor_bytes for name in graph.crossing(cut))
        later = {name for node in each(graph.placed & ~cut) for name in graph.needs[node]}
        assert set(graph.crossing(cut)) == {name for name in later if graph.provided(name, cut)}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_segment_is_trivial(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    cost = data.draw(costs(graph))
    found = pieces(graph, choose_cuts(graph, cost, 8))
    if len(found) == 1:
        return
    for nodes in found:
        flops = sum(cost.flops[node] for node in each(nodes))
        weights = sum(cost.weight_bytes[node] for node in each(nodes))
        all_flops = sum(cost.flops[node] for node in each(graph.placed))
        all_weights = sum(cost.weight_bytes[node] for node in each(graph.placed))
        assert flops * 32 >= all_flops * (1 - 1e-9) or weights * 4 >= all_weights * (1 - 1e-9)


def test_constants_and_what_looks_only_at_sizes_have_no_place() -> None:
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("Add", ["zeros", "two"], ["mask"]),
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Add", ["a", "mask"], ["b"]),
        helper.make_node("Mul", ["b", "mask"], ["y"]),
    ]
    graph = view(_graph(nodes))
    assert [nodes[node].output[0] for node in each(graph.placed)] == ["size", "a", "b", "y"]
    assert [nodes[node].output[0] for node in each(graph.copies_of(1 << 5))] == ["two", "zeros", "mask"]
    assert graph.needs[5] == ("size", "a")
    assert graph.crossing(0b0111110) == ("size", "b")


def test_a_mask_that_is_an_output_has_a_place() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["mask"]),
        helper.make_node("Add", ["x", "mask"], ["y"]),
    ]
    graph = view(_graph(nodes, outputs=("mask", "y")))
    assert graph.placed == 0b111
    assert graph.handed_on(0b011) == ("mask",)


def test_what_an_inner_graph_takes_from_outside_is_read_by_its_node() -> None:
    then = _graph([helper.make_node("Add", ["a", "w"], ["t"])], inputs=(), outputs=("t",))
    other = _graph([helper.make_node("Neg", ["a"], ["o"])], inputs=(), outputs=("o",))
    graph = _graph(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
        ],
        inputs=("x", "flag"),
    )
    graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))
    assert view(graph).reads == (("x",), ("flag", "a", "w"))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Relu", "x", "y"), ("Abs", "x", "y")], r"node .*\(Abs\): makes tensor y, which has another maker"),
        ([("Relu", "x", "x"), ("Abs", "x", "y")], r"\(Relu\): makes tensor x, which has another maker"),
        ([("Relu", "z", "y")], r"\(Relu\): reads tensor z, which no input, weight or earlier node makes"),
        ([("Relu", "x", "z")], "output y: expected a node that makes it, got none"),
    ],
)
def test_a_graph_that_contradicts_itself_is_refused(nodes: list[tuple[str, str, str]], message: str) -> None:
    graph = _graph([helper.make_node(operator, [read], [made]) for operator, read, made in nodes])
    with pytest.raises(ModelError, match=message):
        view(graph)


def test_a_weight_given_twice_is_refused() -> None:
    graph = models.mlp().graph
    graph.initializer.append(graph.initializer[0])
    with pytest.raises(ModelError, match="initializer w0: expected one of that name, got two"):
        view(graph)


def _graph(
    nodes: list[onnx.NodeProto], inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ("y",)
) -> onnx.GraphProto:
    ports = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in (*inputs, *outputs)
    }
    return helper.make_graph(
        nodes, "test", [ports[name] for name in inputs], [ports[name] for name in outputs]
    )
