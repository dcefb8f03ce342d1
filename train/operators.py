"""The operators of ONNX as functions of torch: a table with a line for each.

What is not in the table cannot be trained, and is refused by name before training begins.  Whole numbers
that say something about sizes are tensors too; a function that needs their values looks at them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from onnx import helper
from torch.nn import functional

from shoal.train.graph import Node

Given = Sequence[torch.Tensor]
Function = Callable[[Node, Given], torch.Tensor | Sequence[torch.Tensor]]
"""Makes a node's outputs of its inputs, of which None stands for one that is left out."""


def _each(function: Callable[..., torch.Tensor]) -> Function:
    """Return an operator that takes its inputs by position and has no attributes that matter."""
    return lambda _, x: function(*x)


def _all(function: Callable[..., torch.Tensor]) -> Function:
    """Return an operator that takes any number of inputs, two at a time."""

    def run(_: Node, x: Given) -> torch.Tensor:
        made = x[0]
        for other in x[1:]:
            made = function(made, other)
        return made

    return run


def _ints(x: torch.Tensor) -> list[int]:
    return [int(each) for each in x.reshape(-1).tolist()]


def _dtype(number: int) -> torch.dtype:
    """Return torch's word for a data type of ONNX."""
    return torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(number))).dtype


def _axes(node: Node, x: Given, behind: int = 1) -> list[int] | None:
    """Return the axes that a node names: as an input since opset 13 or 18, as an attribute before."""
    if len(x) > behind and x[behind] is not None:
        return _ints(x[behind])
    return node.integers("axes")


def _optional(x: Given, index: int) -> torch.Tensor | None:
    return x[index] if index < len(x) else None


def _div(_: Node, x: Given) -> torch.Tensor:
    whole = not x[0].is_floating_point()
    return torch.div(x[0], x[1], rounding_mode="trunc") if whole else x[0] / x[1]


def _mod(node: Node, x: Given) -> torch.Tensor:
    return torch.fmod(x[0], x[1]) if node.integer("fmod", 0) else torch.remainder(x[0], x[1])


def _gelu(node: Node, x: Given) -> torch.Tensor:
    return functional.gelu(x[0], approximate=str(node.attributes.get("approximate", "none")))


def _clip(node: Node, x: Given) -> torch.Tensor:
    least, most = _optional(x, 1), _optional(x, 2)
    low = node.attributes.get("min") if least is None else least
    high = node.attributes.get("max") if most is None else most
    return torch.clip(x[0], low, high)


def _gemm(node: Node, x: Given) -> torch.Tensor:
    a = x[0].mT if node.integer("transA", 0) else x[0]
    b = x[1].mT if node.integer("transB", 0) else x[1]
    made = node.number("alpha", 1.0) * (a @ b)
    bias = _optional(x, 2)
    return made if bias is None else made + node.number("beta", 1.0) * bias


def _conv(node: Node, x: Given) -> torch.Tensor:
    """Convolve; pads are put around first, since torch takes none that differ between ends."""
    pads = node.integers("pads") or []
    data = x[0]
    if any(pads):
        dims = len(pads) // 2
        around = [pads[axis + end * dims] for axis in reversed(range(dims)) for end in (0, 1)]
        data = functional.pad(data, around)
    convolve = {3: functional.conv1d, 4: functional.conv2d}[data.ndim]
    return convolve(
        data,
        x[1],
        _optional(x, 2),
        stride=node.integers("strides") or 1,
        dilation=node.integers("dilations") or 1,
        groups=node.integer("group", 1),
    )


def _layer_norm(node: Node, x: Given) -> torch.Tensor:
    sizes = x[0].shape[node.integer("axis", -1) :]
    return functional.layer_norm(x[0], sizes, x[1], _optional(x, 2), node.number("epsilon", 1e-5))


def _rms_norm(node: Node, x: Given) -> torch.Tensor:
    sizes = x[0].shape[node.integer("axis", -1) :]
    return functional.rms_norm(x[0], sizes, x[1], node.number("epsilon", 1e-5))


def _shape(node: Node, x: Given) -> torch.Tensor:
    sizes = list(x[0].shape)[node.integer("start", 0) : node.integer("end", x[0].ndim)]
    return torch.tensor(sizes, dtype=torch.int64)


def _reshape(node: Node, x: Given) -> torch.Tensor:
    sizes = _ints(x[1])
    if not node.integer("allowzero", 0):
        sizes = [x[0].shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x[0].reshape(sizes)


def _transpose(node: Node, x: Given) -> torch.Tensor:
    return x[0].permute(node.integers("perm") or tuple(reversed(range(x[0].ndim))))


def _squeeze(node: Node, x: Given) -> torch.Tensor:
    axes = _axes(node, x)
    return x[0].squeeze() if axes is None else x[0].squeeze(tuple(axes))


def _unsqueeze(node: Node, x: Given) -> torch.Tensor:
    axes = _axes(node, x) or []
    made, dims = x[0], x[0].ndim + len(axes)
    for axis in sorted(axis % dims for axis in axes):
        made = made.unsqueeze(axis)
    return made


def _flatten(node: Node, x: Given) -> torch.Tensor:
    axis = node.integer("axis", 1)
    axis = axis + x[0].ndim if axis < 0 else axis
    return x[0].reshape(int(np.prod(x[0].shape[:axis])), -1)


def _expand(_: Node, x: Given) -> torch.Tensor:
    return x[0].expand(torch.broadcast_shapes(x[0].shape, tuple(_ints(x[1]))))


def _split(node: Node, x: Given) -> tuple[torch.Tensor, ...]:
    axis, sizes = node.integer("axis", 0), _optional(x, 1)
    if sizes is not None:
        return tuple(torch.split(x[0], _ints(sizes), axis))
    given = node.integers("split")
    if given:
        return tuple(torch.split(x[0], given, axis))
    return tuple(torch.split(x[0], -(-x[0].shape[axis] // len(node.outputs)), axis))


def _slice(_: Node, x: Given) -> torch.Tensor:
    starts, stops = _ints(x[1]), _ints(x[2])
    named, stepped = _optional(x, 3), _optional(x, 4)
    axes = range(len(starts)) if named is None else _ints(named)
    steps = [1] * len(starts) if stepped is None else _ints(stepped)
    made = x[0]
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        first, behind, by = slice(start, stop, step).indices(made.shape[axis])
        if by == 1:
            made = made.narrow(axis, first, max(0, behind - first))
        else:
            made = made.index_select(axis, torch.tensor(list(range(first, behind, by)), dtype=torch.int64))
    return made


def _gather(node: Node, x: Given) -> torch.Tensor:
    data, places = x[0], x[1].to(torch.int64)
    axis = node.integer("axis", 0) % data.ndim
    places = torch.where(places < 0, places + data.shape[axis], places)
    found = data.index_select(axis, places.reshape(-1))
    return found.reshape((*data.shape[:axis], *places.shape, *data.shape[axis + 1 :]))


def _gather_elements(node: Node, x: Given) -> torch.Tensor:
    axis = node.integer("axis", 0)
    return torch.gather(x[0], axis, torch.where(x[1] < 0, x[1] + x[0].shape[axis], x[1]))


def _constant(node: Node, _: Given) -> torch.Tensor:
    (value,) = node.attributes.values()
    dtypes = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32}
    name = next(iter(node.attributes))
    return torch.from_numpy(np.array(value, dtypes.get(name, np.float32) if name != "value" else None))


def _constant_of_shape(node: Node, x: Given) -> torch.Tensor:
    value = torch.from_numpy(np.array(node.attributes.get("value", np.zeros(1, np.float32))))
    return value.reshape(()).expand(_ints(x[0]))


def _range(_: Node, x: Given) -> torch.Tensor:
    return torch.arange(x[0].item(), x[1].item(), x[2].item(), dtype=x[0].dtype)


def _trilu(node: Node, x: Given) -> torch.Tensor:
    by = _optional(x, 1)
    cut = torch.triu if node.integer("upper", 1) else torch.tril
    return cut(x[0], 0 if by is None else int(by.item()))


def _reduced(function: Callable[..., torch.Tensor]) -> Function:
    """Return an operator that makes one number of all those along some axes, or along all of them."""

    def run(node: Node, x: Given) -> torch.Tensor:
        axes = _axes(node, x)
        if not axes and node.integer("noop_with_empty_axes", 0):
            return x[0]
        return function(x[0], dim=tuple(axes or range(x[0].ndim)), keepdim=bool(node.integer("keepdims", 1)))

    return run


def _arg_max(node: Node, x: Given) -> torch.Tensor:
    return torch.argmax(x[0], dim=node.integer("axis", 0), keepdim=bool(node.integer("keepdims", 1)))


OPERATORS: Final[Mapping[str, Function]] = {
    # element by element
    "Abs": _each(torch.abs),
    "Add": _each(torch.add),
    "And": _each(torch.logical_and),
    "Cast": lambda node, x: x[0].to(_dtype(node.integer("to", 1))),
    "Ceil": _each(torch.ceil),
    "Clip": _clip,
    "Cos": _each(torch.cos),
    "Div": _div,
    "Equal": _each(torch.eq),
    "Erf": _each(torch.erf),
    "Exp": _each(torch.exp),
    "Floor": _each(torch.floor),
    "Gelu": _gelu,
    "Greater": _each(torch.gt),
    "GreaterOrEqual": _each(torch.ge),
    "Identity": _each(lambda x: x),
    "IsNaN": _each(torch.isnan),
    "Less": _each(torch.lt),
    "LessOrEqual": _each(torch.le),
    "Log": _each(torch.log),
    "Max": _all(torch.maximum),
    "Min": _all(torch.minimum),
    "Mod": _mod,
    "Mul": _each(torch.mul),
    "Neg": _each(torch.neg),
    "Not": _each(torch.logical_not),
    "Or": _each(torch.logical_or),
    "Pow": _each(torch.pow),
    "Reciprocal": _each(torch.reciprocal),
    "Relu": _each(torch.relu),
    "Sigmoid": _each(torch.sigmoid),
    "Sin": _each(torch.sin),
    "Softplus": _each(functional.softplus),
    "Sqrt": _each(torch.sqrt),
    "Sub": _each(torch.sub),
    "Sum": _all(torch.add),
    "Tanh": _each(torch.tanh),
    "Where": _each(torch.where),
    "Xor": _each(torch.logical_xor),
    # products and normalisations
    "Conv": _conv,
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": lambda node, x: torch.log_softmax(x[0], node.integer("axis", -1)),
    "MatMul": _each(torch.matmul),
    "RMSNormalization": _rms_norm,
    "Softmax": lambda node, x: torch.softmax(x[0], node.integer("axis", -1)),
    # along axes
    "ArgMax": _arg_max,
    "CumSum": lambda _, x: torch.cumsum(x[0], int(x[1].item())),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin),
    "ReduceSum": _reduced(torch.sum),
    "Trilu": _trilu,
    # where numbers lie
    "Concat": lambda node, x: torch.cat(tuple(x), node.integer("axis", 0)),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda _, x: torch.tensor(x[0].numel(), dtype=torch.int64),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda _, x: x[0].repeat(_ints(x[1])),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
