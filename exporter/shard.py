"""Writes a board's share of a model as segments of a sharding."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from shoal.exporter.axes import Dim
from shoal.exporter.bundle import BLOBS, store
from shoal.exporter.costs import flops, work_bytes
from shoal.exporter.division import ALL, STOP, Division, NotDivisibleError, Seam, Value, Work
from shoal.exporter.graph import Graph, each
from shoal.exporter.kinds import kind_of
from shoal.exporter.segments import PRODUCER, check_file
from shoal.exporter.shapes import Tensor
from shoal.exporter.stages import Stages
from shoal.exporter.view import initializers, view
from shoal.exporter.wanted import Wanted
from shoal.exporter.weights import blob_of, is_external, refer, weights_in
from shoal.manifest import COLUMNS, ROWS, Segment, ShardCollective, ShardRun, ShardStep, Slice
from shoal.program import COLUMNS as FIRST_ROWS
from shoal.program import LOG_COUNTS, RANGE
from shoal.records import Blob, Sha256, TensorSpec
from shoal.records import Dim as Size


class MixedUnitsError(NotDivisibleError):
    """Two kinds of units are divided in one segment."""

    def __init__(self, fewest: int, words: str) -> None:
        super().__init__(words)
        self.fewest = fewest


class ShardWriter:
    """Writes the segments of one sharding of a normalised model, whose weights lie in `folder`."""

    def __init__(
        self,
        model: onnx.ModelProto,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        units: int,
        folder: Path,
        prefix: str,
        covering: Collection[int] = (),
    ) -> None:
        """Take the model and its tensors at the sample sizes, of which `units` tokens are divided.

        `prefix` begins the name of each segment; `covering` are numbers of units that serve several each.
        """
        self._model, self._graph = model, graph
        self.tensors = dict(tensors)
        """The model's tensors at the sample sizes, and what is made besides."""
        self._units, self._folder, self._prefix = units, folder, prefix
        self.weights = initializers(model.graph)
        self._covering = frozenset(covering)
        self.sizes: dict[str, int] = {}
        """What the named dimensions of the boards' tensors are at the sample sizes."""
        self.segments: list[Segment] = []

    def named(self, name: str) -> str:
        """Return what a segment is called in the bundle."""
        return f"{self._prefix}-{name}"

    def ahead(self, roots: Sequence[str], outputs: Sequence[str]) -> list[ShardStep]:
        """Write what the lead runs before anything is divided: all that makes `roots`."""
        made = [name for name in (*roots, *outputs) if name in self._graph.maker]
        if not made:
            return []
        nodes = 0
        left = [self._graph.maker[name] for name in made]
        while left:
            node = left.pop()
            if not nodes >> node & 1:
                nodes |= 1 << node
                left.extend(self._graph.maker[n] for n in self._graph.reads[node] if n in self._graph.maker)
        taken = [n for n in self._graph.inputs if any(n in self._graph.reads[i] for i in each(nodes))]
        protos = [self._model.graph.node[node] for node in each(nodes)]
        self._write("ahead", protos, taken, made, Division())
        return [ShardRun(segment=self.segments[-1].name, lead_only=True)]

    def handing_out(self, roots: Mapping[str, Dim | None]) -> list[ShardStep]:
        """Return the steps that give the boards what they begin with."""
        whole = tuple(self._spec(Value(source=name)) for name, dim in roots.items() if dim is None)
        steps: list[ShardStep] = []
        if whole:
            steps.append(
                ShardCollective(kind="broadcast", tensors=whole, made=whole, axes=(), to_lead=False, rows=())
            )
        for name, dim in roots.items():
            if dim is not None:
                part = Value(source=name, rows=dim)
                steps.append(
                    ShardCollective(
                        kind="scatter",
                        tensors=(self._spec(Value(source=name)),),
                        made=(replace(self._spec(part), name=f"{name}.part"),),
                        axes=(dim.axis,),
                        to_lead=False,
                        rows=(),
                    )
                )
        return steps

    def stages(self, division: Division, stages: Stages, outputs: Sequence[str]) -> list[ShardStep]:
        """Write the segments of all stages and return the steps, the tail at the lead included."""
        groups = [(one.before, one.beside) for one in stages.stages]
        wanted = Wanted(division, stages, outputs)
        steps: list[ShardStep] = []
        for number, (one, (before, beside)) in enumerate(zip(stages.stages, groups, strict=True)):
            steps += self.segment(f"{number:03}a", division, before, wanted)
            meeting = [division.items[i] for i in one.meeting]
            steps += self._meetings(division, meeting, to_lead=False)
            steps += self.segment(f"{number:03}b", division, beside, wanted)
            collected = [division.items[i] for i in one.collected]
            steps += self._meetings(division, collected, to_lead=True)
        tail = [i for i in stages.tail if isinstance(division.items[i], Work)]
        return [*steps, *self.segment("tail", division, tail, wanted, lead_only=True)]

    def for_means(
        self, steps: Sequence[ShardStep], division: Division, stages: Stages, outputs: Sequence[str]
    ) -> list[ShardStep]:
        """Write those segments once more that read gathered rows, and return `steps` with their names.

        `division` is the one for means, `stages` those of it.  Raises NotDivisibleError if one of them
        cannot do with means; what the lead does with the gathered answer does not have to.
        """
        wanted = Wanted(division, stages, outputs)
        written: dict[str, str] = {}
        runs = [
            (f"{number:03}{word}", works)
            for number, one in enumerate(stages.stages)
            for word, works in (("a", one.before), ("b", one.beside))
        ]
        if any(seam in stages.tail for one in stages.stages for seam in one.meeting):
            runs.append(("tail", tuple(i for i in stages.tail if isinstance(division.items[i], Work))))
        for plain, works in runs:
            items = [division.items[i] for i in works]
            if not any(_reads_columns(item, division) for item in items):
                continue
            made = (division.values[name].source for item in items for name in item.makes)
            for name in made:
                if name in division.against_means:
                    raise NotDivisibleError(division.against_means[name])
            self.segment(f"{plain}-means", division, works, wanted, lead_only=plain == "tail")
            if not any(spec.name == LOG_COUNTS for spec in self.segments[-1].inputs):
                raise NotDivisibleError(f"segment {plain}: has no Softmax along the rows that it gathered")
            written[self.named(plain)] = self.segments[-1].name
        if not written:
            raise NotDivisibleError("boards work with none of the rows that they gather")
        return [
            replace(step, for_means=written.get(step.segment, "")) if isinstance(step, ShardRun) else step
            for step in steps
        ]

    def _meetings(
        self, division: Division, seams: Iterable[Work | Seam], *, to_lead: bool
    ) -> list[ShardStep]:
        """Return the collectives of seams that are entered together: one for each way of meeting."""
        ways: dict[tuple[str, tuple[int, ...]], list[Seam]] = {}
        for seam in seams:
            assert isinstance(seam, Seam)
            ways.setdefault((seam.kind, seam.rows or ()), []).append(seam)
        found: list[ShardStep] = []
        for (_, rows), group in ways.items():
            kind = group[0].kind
            found.append(
                ShardCollective(
                    kind=kind,
                    tensors=tuple(self._local_spec(seam.part, division) for seam in group),
                    made=tuple(self._local_spec(seam.full, division) for seam in group),
                    axes=tuple(seam.axis for seam in group) if kind == "gather" else (),
                    to_lead=to_lead,
                    rows=rows,
                )
            )
        return found

    def segment(
        self,
        name: str,
        division: Division,
        works: Sequence[int],
        wanted: Wanted,
        *,
        lead_only: bool = False,
        besides: Sequence[str] = (),
    ) -> list[ShardStep]:
        """Write the works as one segment, if there are any; it hands on what others need, and `besides`."""
        if not works:
            return []
        items = [division.items[i] for i in (*wanted.copies_for(works), *works)]
        protos = [item.node for item in items if isinstance(item, Work)]
        if lead_only:
            protos = [_of_all(proto, division) for proto in protos]
        made = {name for proto in protos for name in proto.output}
        handed_on = [n for i in works for n in division.items[i].makes if wanted.outside(n, works)]
        handed_on += besides
        protos = [*self._copies(protos, made), *protos]
        made |= {n for proto in protos for n in proto.output}
        taken = dict.fromkeys(
            n
            for proto in protos
            for n in proto.input
            if n and not (n in made or n in self.weights or n in division.constants or n in division.slices)
        )
        self._write(name, protos, list(taken), handed_on, division)
        return [ShardRun(segment=self.segments[-1].name, lead_only=lead_only)]

    def _copies(self, protos: Sequence[onnx.NodeProto], made: set[str]) -> list[onnx.NodeProto]:
        """Return the nodes, constant or of constants, that these need and nobody else has made."""
        nodes, left = 0, [n for proto in protos for n in proto.input if n not in made]
        while left:
            name = left.pop()
            node = self._graph.maker.get(name)
            if node is not None and not self._graph.varying >> node & 1 and not nodes >> node & 1:
                nodes |= 1 << node
                left.extend(self._graph.reads[node])
        return [self._model.graph.node[node] for node in each(nodes)]

    def _write(
        self,
        name: str,
        protos: Sequence[onnx.NodeProto],
        taken: Sequence[str],
        handed_on: Sequence[str],
        division: Division,
    ) -> None:
        name = self.named(name)
        names = {n for proto in protos for n in (*proto.input, *proto.output)}.union(taken, handed_on)
        local = {n: self._local(division.values.get(n, Value(source=n))) for n in names}
        read = {n for proto in protos for n in proto.input}
        model = onnx.ModelProto(
            ir_version=self._model.ir_version, opset_import=self._model.opset_import, producer_name=PRODUCER
        )
        model.graph.name = name
        model.graph.node.extend(protos)
        model.graph.initializer.extend(w for n, w in self.weights.items() if n in read)
        slices = tuple(
            self._slice(model.graph, n, *division.slices[n]) for n in sorted(read & division.slices.keys())
        )
        model.graph.initializer.extend(
            numpy_helper.from_array(array, n) for n, array in sorted(division.constants.items()) if n in read
        )
        inputs = tuple(local[n].spec(n) for n in taken)
        outputs = tuple(local[n].spec(n) for n in handed_on)
        model.graph.input.extend(_port(n, local[n]) for n in taken)
        model.graph.output.extend(_port(n, local[n]) for n in handed_on)
        content = model.SerializeToString(deterministic=True)
        path = self._folder / f"{name}.onnx"
        path.write_bytes(content)
        check_file(path)
        shape = view(model.graph)
        blobs = {blob_of(tensor) for tensor in weights_in(model.graph) if is_external(tensor)}
        self.segments.append(
            Segment(
                name=name,
                model=Blob(sha256=Sha256(hashlib.sha256(content).hexdigest()), size_bytes=len(content)),
                weights=tuple(sorted(blobs, key=lambda blob: blob.sha256)),
                inputs=inputs,
                outputs=outputs,
                kind=kind_of(model.graph, inputs, [local[n].sizes for n in taken]),
                flops=sum(flops(proto, local) for proto in protos),
                work_bytes=work_bytes(shape, (1 << len(shape)) - 1, local),
                units=max((one.units for one in slices), default=0),
                slices=slices,
            )
        )
        self._check_units(slices)

    def _slice(self, graph: onnx.GraphProto, own: str, weight: str, dim: Dim) -> Slice:
        """Add the weight of which a board holds a range to `graph`, whole and in a file of its own."""
        tensor = graph.initializer.add()
        tensor.CopyFrom(self.weights[weight])
        tensor.name = own
        if not is_external(tensor):
            refer(tensor, store(numpy_helper.to_array(tensor).tobytes(), self._folder))
        blob = blob_of(tensor)
        dims = tuple(tensor.dims)
        outer = prod(dims[: dim.axis]) * dim.outer
        units = dims[dim.axis] // (dim.outer * dim.inner)
        content = np.memmap(self._folder / BLOBS / blob.sha256, np.uint8, "r").reshape(outer, units, -1)
        digests = (hashlib.sha256(content[:, unit].tobytes()).hexdigest() for unit in range(units))
        return Slice(
            tensor=own,
            blob=blob,
            axis=dim.axis,
            outer=outer,
            units=units,
            unit_bytes=content.shape[2],
            sha256s=tuple(Sha256(digest) for digest in digests),
        )

    def _check_units(self, slices: Sequence[Slice]) -> None:
        """Raise MixedUnitsError if what is divided in one segment has units that do not go together."""
        kinds = {one.units for one in slices} - self._covering
        if len(kinds) > 1:
            raise MixedUnitsError(min(kinds), f"segments divide {sorted(kinds)} units at once")

    def _local_spec(self, name: str, division: Division) -> TensorSpec:
        return replace(self._spec(division.values[name]), name=name)

    def _spec(self, value: Value) -> TensorSpec:
        return self._local(value).spec(value.source)

    def _local(self, value: Value) -> Tensor:
        """Return what is known of a tensor of the board's own graph, at the sample sizes."""
        known = self.tensors.get(value.source)
        if known is None:  # made by the exporter to count with
            dtype = "float32" if value.source.endswith("float32") else "int64"
            if value.source == RANGE:
                return Tensor(dtype=dtype, sizes=(3,), dims=(3,))
            if value.source in (LOG_COUNTS, FIRST_ROWS):
                dtype = "float32" if value.source == LOG_COUNTS else "int64"
                return Tensor(dtype=dtype, sizes=(self._units,), dims=(COLUMNS,))
            return Tensor(dtype=dtype, sizes=(1,), dims=(None,))
        sizes, dims = list(known.sizes), list(known.dims)
        for dim, name in ((value.rows, ROWS), (value.columns, COLUMNS)):
            if dim is not None:
                packed = dim.outer * dim.inner
                units = known.sizes[dim.axis] // packed
                here = units if name == COLUMNS else (units + 1) // 2
                name = name if units == self._units else f"{name}{units}"
                word = name if packed == 1 else f"{name}*{packed}"
                self.sizes[word] = sizes[dim.axis] = here * packed
                dims[dim.axis] = word
        if value.picked is not None:
            axis, (start, stop) = value.picked
            sizes[axis] = len(range(*slice(start, stop).indices(self._units)))
            dims[axis] = sizes[axis]
            if isinstance(known.dims[axis], str) and (start < 0) != (stop < 0 or (start < 0 and stop == ALL)):
                dims[axis] = word = f"{ROWS}[{start}:]"
                self.sizes[word] = sizes[axis]
        return Tensor(dtype=known.dtype, sizes=tuple(sizes), dims=tuple(dims))


def _reads_columns(item: Work | Seam, division: Division) -> bool:
    """Say whether it is a node that reads rows that the board has gathered."""
    values = (division.values.get(name) for name in item.reads) if isinstance(item, Work) else ()
    return any(value is not None and value.columns is not None for value in values)


def _of_all(proto: onnx.NodeProto, division: Division) -> onnx.NodeProto:
    """Return the node as the lead runs it on what it gathered of all: its last unit is the last of all.

    Boards of a causal division count with their own last one.
    """
    if STOP not in proto.output:
        return proto
    behind = onnx.NodeProto()
    behind.CopyFrom(proto)
    behind.input[1:] = [division.numbers(2), division.numbers(3)]
    return behind


def _port(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
    data_type = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    dims: tuple[Size | None, ...] = tensor.dims
    return helper.make_tensor_value_info(name, data_type, dims)
