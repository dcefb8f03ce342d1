"""Writes attention to gathered rows as a segment of its own, so that boards can attend to parts of them.

What a board's rows make of some of the gathered rows, and the logarithm of the sum of the exponentials of
their scores, is all that is needed to put parts together exactly (`shoal.merging`).  So a segment that reads
gathered rows is written once more as two: `attend`, from these rows to the product of the shares that a
Softmax gives them with values, which has no weights; and `rest`, all behind it, over the same weights.  For
some of the rows there is `partial`, which is `attend` with that logarithm.

That is done by what nodes do and not by names: the gathered rows go through a few operators only, of which
none looks at several of them but one Softmax along them and the product behind it.  What the exporter counts
with the range of the board, or looks up by the columns (masks), is of all rows, and stands against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import onnx
from onnx import helper

from shoal.exporter.axes import Dim
from shoal.exporter.division import GIVEN, Division, NotDivisibleError, Seam, Value, Work, where
from shoal.exporter.shapes import Tensor
from shoal.exporter.shard import ShardWriter
from shoal.exporter.stages import Stages
from shoal.exporter.wanted import Wanted
from shoal.exporter.weights import is_external
from shoal.manifest import InParts, ShardRun, ShardStep
from shoal.program import LOG_COUNTS

ROW_BY_ROW: Final = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Identity"})
"""Operators that move rows about and look at none,"""
WITH_OTHERS: Final = frozenset({"Add", "Div", "Mul", "Sub"})
"""those that do something to each number of a row,"""
AXES_AS_INPUT: Final = 18
"""and the opsets from which on ReduceMax has its axes as an input,"""
LAST_BY_DEFAULT: Final = 13
"""and a Softmax that says nothing else goes along the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What attends to gathered rows in the works of a segment."""

    works: tuple[int, ...]
    scores: str
    shares: str
    """What the Softmax makes of the scores."""
    mixed: str
    """The product of that and values."""


def write_in_parts(
    writer: ShardWriter,
    steps: Sequence[ShardStep],
    division: Division,
    stages: Stages,
    outputs: Sequence[str],
    opset: int,
    *,
    means: bool,
) -> list[ShardStep]:
    """Write those segments once more that attend to gathered rows, apart; return `steps` with these.

    `division` is the one for `means`, or the one for rows as they are, to which nodes are added; `stages`
    those of it.  Raises NotDivisibleError if it can be done with none of them, or if what was written is not
    what was found: then nothing of it is to be kept.
    """
    wanted = Wanted(division, stages, outputs)
    found: dict[str, InParts] = {}
    reasons: list[str] = []
    for number, one in enumerate(stages.stages):
        for word, works in (("a", one.before), ("b", one.beside)):
            plain = f"{number:03}{word}{'-means' if means else ''}"
            try:
                attention = attention_in(works, division, wanted, writer, opset)
            except NotDivisibleError as error:
                reasons.append(f"segment {plain}: {error}")
                continue
            if attention is not None:
                found[writer.named(plain)] = _written(
                    writer, plain, works, attention, division, wanted, opset
                )
    if not found:
        raise NotDivisibleError(next(iter(reasons), "no segment attends to rows that boards gather"))
    return [_with(step, found) if isinstance(step, ShardRun) else step for step in steps]


def attention_in(
    works: Sequence[int], division: Division, wanted: Wanted, writer: ShardWriter, opset: int
) -> Attention | None:
    """Return what attends to gathered rows; None if none is read.  Raises NotDivisibleError if it is more."""
    nodes = {i: item.node for i in works if isinstance(item := division.items[i], Work)}
    made = {name for node in nodes.values() for name in node.output}
    seams = {item.full for item in division.items if isinstance(item, Seam) and item.kind == "gather"}
    touched = seams.intersection(name for node in nodes.values() for name in node.input)
    if not touched:
        return None
    taken: list[int] = []
    scores = shares = mixed = ""
    for i, node in nodes.items():
        if touched.isdisjoint(node.input):
            continue
        taken.append(i)
        beside = [name for name in node.input if name and name not in touched]
        _check_others(node, beside, made, division, writer)
        output = node.output[0]
        if node.op_type == "MatMul" and node.input[0] == shares:
            if mixed or node.input[1] not in touched:
                raise NotDivisibleError(f"{where(node)}: what it multiplies with shares is no gathered row")
            mixed = output
            continue
        if shares and shares in node.input:
            raise NotDivisibleError(f"{where(node)}: reads the shares of rows")
        if node.op_type == "Softmax":
            if shares or not _along_columns(node, division, writer, opset):
                raise NotDivisibleError(
                    f"{where(node)}: expected one Softmax along the rows that are gathered"
                )
            scores, shares = node.input[0], output
        elif node.op_type in WITH_OTHERS:
            _check_each_alike(node, beside, division, writer)
        elif node.op_type not in ROW_BY_ROW and not (node.op_type == "MatMul" and node.input[1] in touched):
            raise NotDivisibleError(f"{where(node)}: is not known to do with each row alone")
        if len(node.output) > 1 or _columns(output, division) is None:
            raise NotDivisibleError(f"{where(node)}: does not keep the rows that are gathered")
        touched.add(output)
    if not mixed:
        raise NotDivisibleError("has no product of the shares of a Softmax with gathered rows")
    if len(taken) == len(nodes):
        raise NotDivisibleError("has nothing behind the attention that could come later")
    if outside := sorted(name for name in touched if wanted.outside(name, taken)):
        raise NotDivisibleError(f"tensor {outside[0]}: is read elsewhere too")
    copies = [division.items[i] for i in wanted.copies_for(taken)]
    if any(not (GIVEN - {LOG_COUNTS}).isdisjoint(item.reads) for item in copies):
        raise NotDivisibleError("counts with all rows that are gathered")
    if writer.tensors[division.values[mixed].source].dtype != "float32":
        raise NotDivisibleError("does not attend in float32")
    return Attention(works=tuple(taken), scores=scores, shares=shares, mixed=mixed)


def _columns(name: str, division: Division) -> Dim | None:
    """Return where the gathered rows lie in a tensor of a board's graph; None: it has none."""
    value = division.values.get(name)
    return value.columns if value is not None else None


def _check_others(
    node: onnx.NodeProto, beside: Sequence[str], made: set[str], division: Division, writer: ShardWriter
) -> None:
    """Raise NotDivisibleError unless what a node reads besides gathered rows is there, and no weight."""
    for name in beside:
        weight = writer.weights.get(name)
        if name in made:
            raise NotDivisibleError(f"{where(node)}: reads {name}, which is made only now")
        if _columns(name, division) is not None and name != LOG_COUNTS:
            raise NotDivisibleError(f"{where(node)}: reads {name}, which has a row for each that is gathered")
        if name in GIVEN - {LOG_COUNTS} or (weight is not None and is_external(weight)):
            raise NotDivisibleError(f"{where(node)}: reads {name}, which attention to parts cannot have")


def _along_columns(node: onnx.NodeProto, division: Division, writer: ShardWriter, opset: int) -> bool:
    """Say whether a Softmax goes along the gathered rows, which lie on the last axis alone."""
    value = division.values[node.input[0]]
    last = len(writer.tensors[value.source].sizes) - 1
    usual = -1 if opset >= LAST_BY_DEFAULT else None
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), usual)
    return axis in (-1, last) and value.columns == Dim(last)


def _check_each_alike(
    node: onnx.NodeProto, beside: Sequence[str], division: Division, writer: ShardWriter
) -> None:
    """Raise NotDivisibleError unless other operands do the same to all gathered rows, or count them."""
    value = division.values[node.output[0]]
    if value.columns is None:
        return  # that is looked at next
    from_end = len(writer.tensors[value.source].sizes) - value.columns.axis
    for name in beside:
        sizes = _sizes(name, division, writer)
        alike = sizes is not None and (len(sizes) < from_end or sizes[-from_end] == 1)
        if name != LOG_COUNTS and not alike:
            raise NotDivisibleError(f"{where(node)}: reads {name}, which has something for each row")


def _sizes(name: str, division: Division, writer: ShardWriter) -> tuple[int, ...] | None:
    """Return the sizes in the model of what a tensor of a board's graph is of; None: that is not known."""
    weight = writer.weights.get(name)
    if weight is not None:
        return tuple(weight.dims)
    value = division.values.get(name)
    known = writer.tensors.get(name if value is None else value.source)
    return None if known is None else known.sizes


def _written(
    writer: ShardWriter,
    plain: str,
    works: Sequence[int],
    attention: Attention,
    division: Division,
    wanted: Wanted,
    opset: int,
) -> InParts:
    """Write the segments; nodes for the logarithm of the sum are added to the division."""
    mixed, log_sum = attention.mixed, f"{attention.mixed}.log_sum"
    names = {each: writer.named(f"{plain}-{each}") for each in ("attend", "partial", "rest")}
    writer.segment(f"{plain}-attend", division, attention.works, wanted)
    first = len(division.items)
    most, largest = (
        _most(name, f"{log_sum}.{word}", division, opset)
        for name, word in ((attention.scores, "score"), (attention.shares, "share"))
    )
    division.add("Log", [largest], f"{log_sum}.log", divided=True)
    division.add("Sub", [most, f"{log_sum}.log"], log_sum, divided=True)
    value = division.values[mixed]
    known = writer.tensors[value.source]
    like = Tensor(dtype=known.dtype, sizes=(*known.sizes[:-1], 1), dims=(*known.dims[:-1], 1))
    for name in (most, largest, f"{log_sum}.log", log_sum):
        writer.tensors[name] = like
        division.values[name] = Value(source=name, rows=value.rows)
    attending = (*attention.works, *range(first, len(division.items)))
    writer.segment(f"{plain}-partial", division, attending, wanted, besides=(log_sum,))
    behind = [i for i in works if i not in attention.works]
    writer.segment(f"{plain}-rest", division, behind, wanted)
    *_, attend, partial, _ = writer.segments
    made = [[spec.name for spec in one.outputs] for one in (attend, partial)]
    if attend.weights or made != [[mixed], [mixed, log_sum]]:
        raise NotDivisibleError(
            f"segment {plain}: attention makes {made[1]} with {len(attend.weights)} weights"
        )
    return InParts(**names)


def _most(name: str, made: str, division: Division, opset: int) -> str:
    """Add the largest number of each row."""
    axes_as_input = opset >= AXES_AS_INPUT
    node = helper.make_node("ReduceMax", [name, *([division.numbers(-1)] if axes_as_input else [])], [made])
    node.attribute.append(helper.make_attribute("keepdims", 1))
    if not axes_as_input:
        node.attribute.append(helper.make_attribute("axes", [-1]))
    division.items.append(Work(node=node, flops=0, divided=True))
    return made


def _with(step: ShardRun, found: Mapping[str, InParts]) -> ShardRun:
    """Return the step with the segments that were written for it."""
    return replace(
        step,
        in_parts=found.get(step.segment, step.in_parts),
        means_in_parts=found.get(step.for_means, step.means_in_parts),
    )
