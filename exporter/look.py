"""Looks at a model at one set of input sizes: the type and the sizes of every tensor.

Shape inference does most of it.  Where it gives up it invents a symbol (`unk__7`) and carries that on,
so it is enough to ask onnxruntime for the shape of the first tensor that has the symbol, on a sample.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import onnx
from onnx import helper, shape_inference

from shoal.exporter.samples import Sample
from shoal.exporter.view import MAIN_DOMAINS
from shoal.session import open_session

Sizes = tuple[int, ...]
_PREFIX: Final = "shoal_shape_of_"
_TENSOR: Final = "tensor_type"


class Seen(NamedTuple):
    """One tensor at one set of input sizes."""

    dtype: str
    """Numpy's word for the type of the elements."""
    sizes: Sizes


class _Guess(NamedTuple):
    """What shape inference says of one tensor."""

    dtype: str
    """Empty if it does not know."""
    shape: tuple[int | str, ...] | None
    """Sizes and symbols for sizes; None if it does not know how many there are."""


class Look:
    """A normalised model whose weights lie in a folder, ready to be looked at."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        """Take `model`; scratch files go to `folder`."""
        self._model, self._folder = model, folder

    def at(self, sizes: Mapping[str, int], sample: Sample) -> dict[str, Seen]:
        """Return every tensor but weights as it is when the inputs have these sizes.

        What is no tensor (a sequence, say) is left out.  Raises ModelError if the model does not run.
        """
        guesses = self._infer(sizes)
        seen = self._measure(guesses, sample)
        meaning: dict[str | int, int] = {}
        for name, tensor in seen.items():
            meaning.update(zip(guesses[name].shape or (), tensor.sizes, strict=False))
        for name, guess in guesses.items():
            if name not in seen and guess.shape is not None:
                sizes_of = (size if isinstance(size, int) else meaning[size] for size in guess.shape)
                seen[name] = Seen(guess.dtype, tuple(sizes_of))
        return seen

    def _infer(self, sizes: Mapping[str, int]) -> dict[str, _Guess]:
        """Return what shape inference says of the inputs and of what nodes make, in their order."""
        model = self._copy()
        for port in model.graph.input:
            for dim in port.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_value = sizes[dim.dim_param]
        for port in model.graph.output:
            port.type.tensor_type.ClearField("shape")
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        ports = {port.name: port for port in (*graph.input, *graph.value_info, *graph.output)}
        names = [*(port.name for port in graph.input), *(name for node in graph.node for name in node.output)]
        unknown = onnx.ValueInfoProto()
        found = {name: _guess(name, ports.get(name, unknown)) for name in names if name}
        return {name: guess for name, guess in found.items() if guess is not None}

    def _measure(self, guesses: Mapping[str, _Guess], sample: Sample) -> dict[str, Seen]:
        """Return what a run on `sample` shows of the tensors that leave something open.

        Only the shape of a tensor of known type leaves onnxruntime, so that no big ones pile up.  The
        run is made even if nothing is open: it is what tells whether the model works at these sizes.
        """
        asked = list(_open(guesses))
        plain = [name for name in asked if not guesses[name].dtype]
        model = self._copy()
        domain = next(entry.domain for entry in model.opset_import if entry.domain in MAIN_DOMAINS)
        outputs = {port.name for port in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in plain if name not in outputs)
        for name in asked:
            if guesses[name].dtype:
                model.graph.node.append(helper.make_node("Shape", [name], [_PREFIX + name], domain=domain))
                model.graph.output.add(name=_PREFIX + name)
        with _written(model, self._folder) as path:
            names = [*plain, *(_PREFIX + name for name in asked if guesses[name].dtype)]
            results = open_session(path).run(sample, names or None)
        seen = {}
        for name in asked:
            if guesses[name].dtype:
                seen[name] = Seen(guesses[name].dtype, tuple(int(n) for n in results[_PREFIX + name]))
            elif isinstance(results[name], np.ndarray):
                seen[name] = Seen(results[name].dtype.name, tuple(results[name].shape))
        return seen

    def _copy(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        return model


def dtype_word(data_type: int) -> str:
    """Return numpy's word for an ONNX element type, empty for the undefined one."""
    if data_type == onnx.TensorProto.UNDEFINED:
        return ""
    if data_type == onnx.TensorProto.STRING:
        return "string"
    return str(helper.tensor_dtype_to_np_dtype(data_type).name)


def _guess(name: str, port: onnx.ValueInfoProto) -> _Guess | None:
    """Return what is known of a value; a size without value or symbol gets a symbol of its own.

    None if it is no tensor.
    """
    if port.type.WhichOneof("value") not in (None, _TENSOR):
        return None
    kind = port.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{name} {axis}"
            for axis, dim in enumerate(kind.shape.dim)
        )
    return _Guess(dtype_word(kind.elem_type), shape)


def _open(guesses: Mapping[str, _Guess]) -> Iterator[str]:
    """Yield the tensors to measure: the first with each symbol, and those of unknown rank or type."""
    symbols: set[int | str] = set()
    for name, guess in guesses.items():
        new = {size for size in guess.shape or () if isinstance(size, str)} - symbols
        symbols |= new
        if new or guess.shape is None or not guess.dtype:
            yield name


@contextmanager
def _written(model: onnx.ModelProto, folder: Path) -> Iterator[Path]:
    """Write `model` to `folder` for as long as it is needed."""
    path = folder / "look.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        yield path
    finally:
        path.unlink()
