"""Follows one dimension of a tensor through the operators of a graph: a table of rules.

A dimension that is divided among boards (tokens, heads, columns) is followed as a `Dim`: the axis on
which it lies, and how it lies there.  Reshape may pack it between others: an axis of size `outer *
units * inner` has the divided units in the middle.  For each operator a rule says where the dimension
is afterwards, or that the operator adds it up (so each board has a part of a sum), or, in words that a
person can read, why the operator needs it whole.

What has no rule needs the whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, NamedTuple

Sizes = tuple[int, ...]


class Dim(NamedTuple):
    """Where the divided units lie in a tensor: `axis` has outer * units * inner elements."""

    axis: int
    outer: int = 1
    inner: int = 1


class Kept(NamedTuple):
    """The units lie here in each output; None: the output does not have them."""

    dims: tuple[Dim | None, ...]


class Summed(NamedTuple):
    """Each board makes a part of a sum over all units; `mean`: of a mean."""

    mean: bool = False


class Stopped(NamedTuple):
    """The operator needs the dimension whole: why."""

    reason: str


Fate = Kept | Summed | Stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One node as far as the rules look at it, at sample sizes at which the divided units are many."""

    operator: str
    name: str
    reads: tuple[Sizes | None, ...]
    """Sizes of the inputs; None where one is left out or is no tensor."""
    makes: tuple[Sizes, ...]
    ints: Mapping[int, tuple[int, ...]]
    """Values of the inputs, by position, that are constant whole numbers."""
    attributes: Mapping[str, object]

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is a whole number."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Return an attribute that is a list of whole numbers; None if it is not there."""
        value = self.attributes.get(name)
        return tuple(int(v) for v in value) if isinstance(value, list | tuple) else None


def follow(call: Call, operand: int, dim: Dim) -> Fate:
    """Return what becomes of dimension `dim` of input `operand`."""
    rule = RULES.get(call.operator)
    if rule is None:
        return Stopped("has no rule for dividing its work")
    return rule(call, operand, dim)


def before(call: Call, operand: int, index: int, dim: Dim) -> Dim | None:
    """Return the dimension of input `operand` that becomes `dim` of output `index`; None if there is none.

    All axes are tried.  One of size 1 serves all units alike.
    """
    for axis, size in enumerate(call.reads[operand] or ()):
        for times in _outers(call, axis):
            tried = Dim(axis, dim.outer * times, dim.inner)
            if size == 1 or size % (tried.outer * tried.inner):
                continue
            fate = follow(call, operand, tried)
            if isinstance(fate, Kept) and len(fate.dims) > index and fate.dims[index] == dim:
                return tried
    return None


def _outers(call: Call, axis: int) -> tuple[int, ...]:
    """Return into how many parts an operator may take an axis apart."""
    if call.operator == "Split":
        return 1, len(call.makes)
    read, made = call.reads[0], call.makes[0]
    if call.operator == "Slice" and read and len(read) == len(made) and made[axis]:
        return 1, read[axis] // made[axis]
    return (1,)


def partner(call: Call, operand: int, out: Dim) -> int | None:
    """Return the axis of input `operand` that lines up with dimension `out` of the first output.

    None if the input has no such axis, or one of size 1 that serves all units alike.
    """
    sizes = call.reads[operand]
    if sizes is None or call.operator not in LINED_UP:
        return None
    if call.operator == "Gemm" and operand != 2:
        return None
    if call.operator in PRODUCTS and out.axis >= len(call.makes[0]) - 2:
        return None
    axis = out.axis - (len(call.makes[0]) - len(sizes))
    return axis if axis >= 0 and sizes[axis] != 1 else None


def _element_wise(call: Call, operand: int, dim: Dim) -> Fate:
    sizes = call.reads[operand]
    assert sizes is not None
    return Kept(
        tuple(dim._replace(axis=dim.axis + len(made) - len(sizes)) if made else None for made in call.makes)
    )


def _along_axis(call: Call, operand: int, dim: Dim) -> Fate:
    """Softmax and its like: each line along one axis is one piece of work."""
    axis = _axis(call, call.integer("axis", -1), operand)
    if axis == dim.axis:
        return Stopped("works along that axis")
    return _same_place(call, operand, dim)


def _normalisation(call: Call, operand: int, dim: Dim) -> Fate:
    """Layer norms: all axes from `axis` on are one piece of work."""
    if operand > 0:
        return Stopped("needs its scale whole")
    if dim.axis >= _axis(call, call.integer("axis", -1), operand):
        return Stopped("works along that axis")
    return _same_place(call, operand, dim)


def _same_place(call: Call, operand: int, dim: Dim) -> Fate:
    sizes = call.reads[operand]
    return Kept(tuple(dim if sizes and len(made) == len(sizes) else None for made in call.makes))


def _transpose(call: Call, operand: int, dim: Dim) -> Fate:
    sizes = call.reads[operand]
    assert sizes is not None
    perm = call.integers("perm") or tuple(reversed(range(len(sizes))))
    return Kept((dim._replace(axis=perm.index(dim.axis)),))


def _reshape(call: Call, operand: int, dim: Dim) -> Fate:
    sizes = call.reads[operand]
    if operand != 0 or sizes is None:
        return Stopped("needs its sizes whole")
    moved = moved_by_reshape(sizes, call.makes[0], dim)
    return Kept((moved,)) if moved else Stopped(f"takes it apart: {list(sizes)} to {list(call.makes[0])}")


def moved_by_reshape(before: Sizes, after: Sizes, dim: Dim) -> Dim | None:
    """Return where the units lie when the same elements have sizes `after`; None if they are torn apart.

    >>> moved_by_reshape((2, 7, 12), (2, 7, 3, 4), Dim(2, 1, 4))
    Dim(axis=2, outer=1, inner=1)
    """
    units, rest = divmod(before[dim.axis], dim.outer * dim.inner)
    if rest or not units:
        return None
    ahead = prod(before[: dim.axis]) * dim.outer
    behind = dim.inner * prod(before[dim.axis + 1 :])
    for axis, size in enumerate(after):
        left = prod(after[:axis])
        if size % units or left == 0 or ahead % left:
            continue
        outer = ahead // left
        if size % (outer * units):
            continue
        inner = size // (outer * units)
        if inner * prod(after[axis + 1 :]) == behind:
            return Dim(axis, outer, inner)
    return None


def _expand(call: Call, operand: int, dim: Dim) -> Fate:
    return _element_wise(call, operand, dim) if operand == 0 else Stopped("needs its sizes whole")


def _concat(call: Call, operand: int, dim: Dim) -> Fate:
    if _axis(call, call.integer("axis", 0), operand) == dim.axis:
        return Stopped("joins tensors along that axis")
    return _same_place(call, operand, dim)


def _split(call: Call, operand: int, dim: Dim) -> Fate:
    if operand != 0:
        return Stopped("needs its sizes whole")
    if _axis(call, call.integer("axis", 0), operand) != dim.axis:
        return _same_place(call, operand, dim)
    count = len(call.makes)
    if dim.outer % count or len({made[dim.axis] for made in call.makes}) != 1:
        return Stopped("splits that axis")
    return Kept((dim._replace(outer=dim.outer // count),) * count)


def _slice(call: Call, operand: int, dim: Dim) -> Fate:
    sizes, made = call.reads[operand], call.makes[0]
    if operand != 0 or sizes is None:
        return Stopped("needs its limits whole")
    axes = call.ints.get(3) or call.integers("axes")
    whole_axes = axes is not None and dim.axis not in {axis % len(sizes) for axis in axes}
    if whole_axes or made[dim.axis] == sizes[dim.axis]:
        return Kept((dim,))
    starts, steps = call.ints.get(1, ()), call.ints.get(4, (1,))
    block, rest = divmod(made[dim.axis] * dim.outer, sizes[dim.axis])
    if rest or len(axes or ()) != 1 or len(starts) != 1 or steps != (1,) or block == 0:
        return Stopped("takes a part of that axis")
    if starts[0] < 0 or starts[0] % made[dim.axis]:
        return Stopped("takes a part of that axis that lies across its units")
    return Kept((dim._replace(outer=block),))


def _gather(call: Call, operand: int, dim: Dim) -> Fate:
    data, indices = call.reads[0], call.reads[1]
    assert data is not None
    axis = call.integer("axis", 0) % len(data)
    if operand == 1:
        return Kept((dim._replace(axis=dim.axis + axis),))
    if dim.axis == axis:
        return Stopped("looks rows up along that axis")
    shift = len(indices or ()) - 1 if dim.axis > axis else 0
    return Kept((dim._replace(axis=dim.axis + shift),))


def _reduce(call: Call, operand: int, dim: Dim) -> Fate:
    sizes = call.reads[0]
    if operand != 0 or sizes is None:
        return Stopped("needs its axes whole")
    given = call.ints.get(1) if len(call.reads) > 1 and call.reads[1] is not None else call.integers("axes")
    axes = {axis % len(sizes) for axis in (given if given is not None else range(len(sizes)))}
    if dim.axis in axes:
        mean = call.operator == "ReduceMean" and axes == {dim.axis}
        if (call.operator == "ReduceSum" or mean) and (dim.outer, dim.inner) == (1, 1):
            return Summed(mean=mean)
        return Stopped("works along that axis")
    gone = 0 if call.integer("keepdims", 1) else sum(1 for axis in axes if axis < dim.axis)
    return Kept((dim._replace(axis=dim.axis - gone),))


def _product(call: Call, operand: int, dim: Dim) -> Fate:
    """MatMul: rows of the left operand, columns of the right one, and what both have in front."""
    sizes, made = call.reads[operand], call.makes[0]
    assert sizes is not None
    if len(sizes) < 2:
        return Stopped("multiplies it as a vector")
    back = len(sizes) - dim.axis  # 1: last axis, 2: last but one
    if back <= 2 and call.integer("transA" if operand == 0 else "transB", 0):
        back = 3 - back
    if back == (1 if operand == 0 else 2):
        return Summed() if dim.outer == 1 else Stopped("adds up along that axis")
    if operand > 1:
        return Stopped("needs its scales whole")
    return Kept((dim._replace(axis=len(made) - back),))


def _gemm(call: Call, operand: int, dim: Dim) -> Fate:
    if operand == 2:
        sizes = call.reads[2]
        return Kept((dim._replace(axis=dim.axis + 2 - len(sizes or ())),))
    crossed = call.integer("transA" if operand == 0 else "transB", 0)
    across = dim.axis != crossed if operand == 0 else dim.axis == crossed
    if across:
        return Summed() if dim.outer == 1 else Stopped("adds up along that axis")
    return Kept((dim._replace(axis=operand),))


def _pad(call: Call, operand: int, dim: Dim) -> Fate:
    sizes, made = call.reads[0], call.makes[0]
    if operand != 0 or sizes is None or made[dim.axis] != sizes[dim.axis]:
        return Stopped("pads that axis")
    return Kept((dim,))


def _one_scale(_call: Call, _operand: int, _dim: Dim) -> Fate:
    return Stopped("takes one scale from all of it")


def _convolution(_call: Call, operand: int, dim: Dim) -> Fate:
    return Kept((dim,)) if operand == 0 and dim.axis == 0 else Stopped("looks at neighbours")


def _axis(call: Call, axis: int, operand: int) -> int:
    return axis % max(1, len(call.reads[operand] or ()))


Rule = Callable[[Call, int, Dim], Fate]


def _table(*lines: tuple[Rule, str]) -> Mapping[str, Rule]:
    return {operator: rule for rule, operators in lines for operator in operators.split()}


PRODUCTS: Final = ("MatMul", "FusedMatMul", "MatMulInteger")
_ELEMENT_WISE: Final = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BiasGelu BitShift BitwiseAnd BitwiseNot BitwiseOr
    BitwiseXor Cast CastLike Ceil Celu Clip Cos Cosh DequantizeLinear Div Dropout Elu Equal Erf Exp
    FastGelu Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less
    LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear QuickGelu Reciprocal
    Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu
    Where Xor
"""

RULES: Final = _table(
    (_element_wise, _ELEMENT_WISE),
    (_along_axis, "Softmax LogSoftmax Hardmax CumSum LpNormalization"),
    (_normalisation, "LayerNormalization RMSNormalization SimplifiedLayerNormalization"),
    (_transpose, "Transpose"),
    (_reshape, "Reshape Flatten Squeeze Unsqueeze"),
    (_expand, "Expand"),
    (_concat, "Concat"),
    (_split, "Split"),
    (_slice, "Slice"),
    (_gather, "Gather"),
    (_reduce, "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum"),
    (_reduce, "ReduceSumSquare"),
    (_product, "MatMul FusedMatMul MatMulInteger"),
    (_gemm, "Gemm"),
    (_pad, "Pad"),
    (_convolution, "Conv"),
    (_one_scale, "DynamicQuantizeLinear DynamicQuantizeMatMul"),
)
"""One line per rule: the operators for which it holds."""

LINED_UP: Final = frozenset((*_ELEMENT_WISE.split(), *PRODUCTS, "Concat", "Gemm", "Expand"))
"""Operators whose inputs lie side by side, so that a whole input is cut to the rows of a divided one."""
