"""Writes a product that makes queries, keys and values in one as a product for each.

Models that keep the three weights as one take what it makes apart again: by Split, Slices or Gathers, often
behind a Reshape that gives the three an axis.  Boards that share the tokens of a request could hand over
keys and values only when the queries are made too.  So such a product, and what comes between, is written
once for each of its parts, over the columns of the weight and the bias that make this one.  What the parts
are called, and each of their numbers, stays.

The same is done to any product that makes two or three parts, such as the gate of a feed-forward layer and
what it lets through.  In one piece a model is not slower for it (0.92 to 1.00 times as long, by hand, at 49
to 1024 rows of 768 numbers): nothing has to be taken apart any more.  So the parts of the weights take the
place of the whole in all of the bundle, and none is there twice.  Products whose weight is not a constant of
float32 (quantised ones, say) are left as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from shoal.exporter.axes import Call, Dim, moved_by_reshape
from shoal.exporter.division import Model, call_of, known_rows
from shoal.exporter.rewriting import Original, Rewriting
from shoal.exporter.view import MAIN_DOMAINS, initializers, view
from shoal.exporter.weights import drop_blobs, read_weight, write_weight

MOST: Final = 3
"""Parts of a product: queries, keys and values, or two of them.  What has more is no such product."""
SQUEEZE_OPSET: Final = 13
"""From here on, the axes of a Squeeze are an input."""
_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})
_BETWEEN: Final = frozenset({"Add", "Reshape", "Transpose"})
"""What a product and its parts can have between them."""
_TAKERS: Final = frozenset({"Gather", "Slice", "Split"})


def split_projections(model: onnx.ModelProto, original: Original) -> onnx.ModelProto:
    """Return a normalised model with a product for each of the parts.

    It is `model` itself if none is made with others, or if what it would be does not answer as the original.
    Weights that are not needed any more are removed.
    """
    known = original.known(model) if _Chains(model.graph).found else None
    found = with_products_apart(model, known, original.folder) if known is not None else None
    if found is None:
        return model
    kept, dropped = (found, model) if original.answers(found) else (model, found)
    drop_blobs(dropped.graph, kept.graph, original.folder)
    return kept


def with_products_apart(proto: onnx.ModelProto, model: Model, folder: Path) -> onnx.ModelProto | None:
    """Return a copy of `proto`, which `model` knows, with a product for each part; None if none is joint.

    The new weights are written to `folder`, where the others lie.
    """
    chains = _Chains(proto.graph)
    joints = _agreeing(chains, [joint for chain in chains.found if (joint := _joint(model, chain))])
    if not joints:
        return None
    writer = _Writer(proto, model, folder)
    gone = {node for joint in joints for node in (*joint.chain.nodes, *joint.chain.takers)}
    first = {min(joint.chain.takers): joint for joint in joints}
    for index, node in enumerate(model.nodes):
        if index in first:
            writer.take(first[index])
        if index not in gone:
            writer.nodes.append(node)
    return writer.written(proto)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """A product with a weight and all that comes behind it up to its parts, as positions of nodes."""

    nodes: tuple[int, ...]
    """The product first; each of the others is all that reads what the one before makes."""
    weights: tuple[Mapping[int, str], ...]
    """By each of the nodes, the weights that it reads, by the position of the input."""
    takers: tuple[int, ...]
    """All that read what the last of them makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Units `start` up to, not including, `stop` of what is taken apart."""

    start: int
    stop: int
    output: str
    squeezed: bool
    """It has not the axis of the parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joint:
    """A product that makes several parts."""

    chain: _Chain
    dims: tuple[Dim, ...]
    """Where the parts lie in what each node of the chain makes."""
    parts: tuple[_Part, ...]


class _Chains:
    """What can be a product of several parts by its operators, before any size is looked at."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = graph.node
        self._outputs = {port.name for port in graph.output}
        self._dims = {w.name: len(w.dims) for w in graph.initializer if w.data_type == TensorProto.FLOAT}
        self._same = {name: name for name in self._dims}
        """The weights of float32, and what is the same under another name."""
        self._readers: dict[str, list[int]] = {}
        for index, (node, names) in enumerate(zip(graph.node, view(graph).reads, strict=True)):
            if node.op_type == "Identity" and node.input[0] in self._same:
                self._same[node.output[0]] = self._same[node.input[0]]
            for name in names:
                self._readers.setdefault(name, []).append(index)
        self.found = [chain for index in range(len(graph.node)) if (chain := self._chain(index))]

    def uses(self, weight: str) -> int:
        """Return how many nodes, and outputs of the model, need a weight."""
        names = [name for name, known in self._same.items() if known == weight]
        copies = len(names) - 1
        return sum(len(self._readers.get(name, ())) + (name in self._outputs) for name in names) - copies

    def _chain(self, index: int) -> _Chain | None:
        weights = self._weights(index)
        matrix = 0 not in weights and self._dims.get(weights.get(1, "")) == 2
        if not matrix or not _is(self._nodes[index], _PRODUCTS):
            return None
        chain, held = [index], [weights]
        while True:
            name = self._nodes[chain[-1]].output[0]
            readers = self._readers.get(name, [])
            if name in self._outputs or not all(self._reads(reader, name) for reader in readers):
                return None
            if len(readers) != 1 or not _is(self._nodes[readers[0]], _BETWEEN):
                break
            chain.append(readers[0])
            held.append(self._weights(readers[0]))
        apart = all(_is(self._nodes[reader], _TAKERS) for reader in readers)
        if not apart or sum(len(self._nodes[reader].output) for reader in readers) < 2:
            return None
        return _Chain(nodes=tuple(chain), weights=tuple(held), takers=tuple(readers))

    def _weights(self, index: int) -> Mapping[int, str]:
        return {place: self._same[n] for place, n in enumerate(self._nodes[index].input) if n in self._same}

    def _reads(self, reader: int, name: str) -> bool:
        """Say whether a node reads a tensor once, and first, or to add a weight to it."""
        names = list(self._nodes[reader].input)
        adds = self._nodes[reader].op_type == "Add" and all(n == name or n in self._same for n in names)
        return names.count(name) == 1 and (
            adds or (names[0] == name and self._nodes[reader].op_type != "Add")
        )


def _is(node: onnx.NodeProto, operators: frozenset[str]) -> bool:
    return node.op_type in operators and node.domain in MAIN_DOMAINS


def _joint(model: Model, chain: _Chain) -> _Joint | None:
    """Return what a chain makes, if each part is of columns of the weight; None if one is not."""
    touched = [model.nodes[index] for index in (*chain.nodes, *chain.takers)]
    if not all(name in model.tensors for node in touched for name in (node.input[0], *node.output)):
        return None
    calls = {i: call_of(model.nodes[i], model.tensors, model.ints) for i in (*chain.nodes, *chain.takers)}
    taken = [_taken(calls[index], model.nodes[index]) for index in chain.takers]
    parts = sorted((part for _, found in taken for part in found), key=lambda part: part.start)
    apart = all(one.start < one.stop for one in parts)
    apart = apart and all(one.stop <= other.start for one, other in pairwise(parts))
    if not apart or not all(found for _, found in taken) or not 2 <= len(parts) <= MOST:
        return None
    axes = {axis for axis, _ in taken}
    dims = [Dim(axes.pop())]
    if axes:
        return None
    behind = list(zip(chain.nodes, chain.weights, strict=True))[1:]
    for index, weights in reversed(behind):
        dim = _before(calls[index], min({0, 1} - weights.keys()), dims[0])
        if dim is None:
            return None
        dims.insert(0, dim)
    for index, weights, dim in zip(chain.nodes, chain.weights, dims, strict=True):
        call, last = calls[index], len(calls[index].makes[0]) - 1
        product = model.nodes[index].op_type in _PRODUCTS
        if weights and dim.axis != last:
            return None
        if not isinstance(model.tensors[model.nodes[index].output[0]].dims[dim.axis], int):
            return None  # they are packed with rows
        if product and len(call.reads) > len(weights) + 1:
            return None  # what it adds is not known
        if not all(_is_row(call, place) for place in weights if not (product and place == 1)):
            return None
    return _Joint(chain=chain, dims=tuple(dims), parts=tuple(parts))


def _is_row(call: Call, operand: int) -> bool:
    """Say whether an input is a number for each column of what is made, or one for all."""
    sizes, made = call.reads[operand], call.makes[0]
    if sizes is None or len(sizes) > len(made):
        return False
    return all(size == 1 for size in sizes[:-1]) and sizes[-1:] in ((), (1,), made[-1:])


def _taken(call: Call, node: onnx.NodeProto) -> tuple[int, Sequence[_Part]]:
    """Return the axis along which a node takes apart what it reads, and its parts; none if it does not."""
    sizes = call.reads[0]
    assert sizes is not None
    if call.operator == "Split":
        axis = call.integer("axis", 0) % len(sizes)
        ends = [0, *accumulate(made[axis] for made in call.makes)]
        return axis, [
            _Part(start=start, stop=stop, output=name, squeezed=False)
            for name, (start, stop) in zip(node.output, pairwise(ends), strict=True)
        ]
    if call.operator == "Gather":
        axis = call.integer("axis", 0) % len(sizes)
    else:
        axis = next((axis for axis, size in enumerate(sizes) if call.makes[0][axis] != size), 0)
    rows = known_rows(call.operator, call, Dim(axis), sizes[axis])
    if rows is None or len(call.makes[0]) > len(sizes):
        return axis, ()
    start, stop, _ = slice(*rows).indices(sizes[axis])
    squeezed = len(call.makes[0]) < len(sizes)
    return axis, [_Part(start=start, stop=stop, output=node.output[0], squeezed=squeezed)]


def _before(call: Call, place: int, dim: Dim) -> Dim | None:
    """Return where units that a node of a chain makes at `dim` lie in what it reads at `place`."""
    read, made = call.reads[place], call.makes[0]
    if read is None or (call.operator == "Add" and len(read) != len(made)):
        return None  # what is added has more axes
    if call.operator == "Reshape":
        return moved_by_reshape(made, read, dim)
    if call.operator == "Transpose":
        perm = call.integers("perm") or tuple(reversed(range(len(made))))
        return dim._replace(axis=perm[dim.axis])
    return dim


def _agreeing(chains: _Chains, joints: Sequence[_Joint]) -> list[_Joint]:
    """Return those whose weight nothing else needs, or needs otherwise: else it would be there twice."""
    ways: dict[str, list[object]] = {}
    for joint in joints:
        way = (joint.dims[0], [(part.start, part.stop) for part in joint.parts])
        ways.setdefault(joint.chain.weights[0][1], []).append(way)
    alone = {
        weight
        for weight, found in ways.items()
        if len(found) == chains.uses(weight) and all(way == found[0] for way in found)
    }
    return [joint for joint in joints if joint.chain.weights[0][1] in alone]


class _Writer(Rewriting):
    """Writes the nodes of a model, those of each part by themselves."""

    def __init__(self, proto: onnx.ModelProto, model: Model, folder: Path) -> None:
        super().__init__(model)
        self._weights = initializers(proto.graph)
        self._needed = {
            *(port.name for port in proto.graph.output),
            *(n for names in model.graph.reads for n in names),
        }
        self._folder = folder
        self._cuts: dict[tuple[str, int, Dim, int, int], str] = {}

    def take(self, joint: _Joint) -> None:
        """Add the nodes of all parts of a product."""
        for part in joint.parts:
            if part.output in self._needed:
                self._take(joint, part)

    def _take(self, joint: _Joint, part: _Part) -> None:
        nodes = self._model.nodes
        read = made = nodes[joint.chain.nodes[0]].input[0]
        for index, weights, dim in zip(joint.chain.nodes, joint.chain.weights, joint.dims, strict=True):
            node, plain = nodes[index], onnx.NodeProto()
            plain.CopyFrom(node)
            last = index == joint.chain.nodes[-1] and not part.squeezed
            ending = f"/{part.start}to{part.stop}"
            name = part.output if last else self.new(f"{node.output[0]}{ending}")
            for place, operand in enumerate(node.input):
                if place in weights:
                    plain.input[place] = self._columns(node, place, weights[place], dim, part)
                elif operand == read:
                    plain.input[place] = made
            plain.output[0] = name
            plain.name = node.name and f"{node.name}{ending}"
            if node.op_type == "Reshape":
                size = dim.outer * (part.stop - part.start) * dim.inner
                plain.input[1] = self.resized(node.input[1], name, dim.axis, size)
            self.nodes.append(plain)
            read, made = node.output[0], name
        if part.squeezed:
            self._squeeze(made, joint.dims[-1].axis, part.output)

    def _columns(self, node: onnx.NodeProto, place: int, weight: str, dim: Dim, part: _Part) -> str:
        """Return the name of the columns of a weight that make a part, adding it if it is not there."""
        tensor = self._weights[weight]
        axis = len(tensor.dims) - 1
        if node.op_type == "Gemm" and place == 1:
            axis -= next((a.i for a in node.attribute if a.name == "transB"), 0)
        if axis < 0 or tensor.dims[axis] == 1:
            return weight
        key = (weight, axis, dim, part.start, part.stop)
        if key not in self._cuts:
            name = self._cuts[key] = self.new(f"{weight}/{part.start}to{part.stop}")
            whole = read_weight(tensor, self._folder)
            ahead, behind = whole.shape[:axis], whole.shape[axis + 1 :]
            apart = whole.reshape(*ahead, dim.outer, -1, dim.inner, *behind)
            found = np.take(apart, range(part.start, part.stop), axis + 1).reshape(*ahead, -1, *behind)
            self.constants.append(write_weight(name, found, self._folder))
        return self._cuts[key]

    def _squeeze(self, name: str, axis: int, output: str) -> None:
        node = helper.make_node("Squeeze", [name], [output], name=output)
        if self._model.opset >= SQUEEZE_OPSET:
            node.input.append(self.constant(output, "axes", [axis]))
        else:
            node.attribute.append(helper.make_attribute("axes", [axis]))
        self.nodes.append(node)
