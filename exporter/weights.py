"""Moves weights out of a model into files named by their digest.

What is moved is written once for each distinct content, so tied weights cost nothing twice.  In the
model a reference takes its place: external data at `blobs/<sha256>`, offset 0, to the end.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from shoal.errors import ModelError
from shoal.exporter.bundle import BLOBS, store
from shoal.exporter.view import inner_graphs
from shoal.records import Array, Blob, Sha256

SMALLEST: Final = 1024
"""Weights of fewer bytes stay inside the ONNX file."""

_Bytes = bytes | memoryview


def lift_weights(model: onnx.ModelProto, source: Path, bundle: Path) -> onnx.ModelProto:
    """Return `model` without big weights, having written these to the folder `bundle`; it spoils `model`.

    Data that `model` keeps in other files are found beside `source`, the file it came from.  Raises
    ModelError, naming the file, if one is missing, too short, or not below the model's folder.
    """
    for tensor in weights_in(model.graph):
        if is_big(tensor):
            with _content(tensor, source) as content:
                if len(content) >= SMALLEST:
                    refer(tensor, store(content, bundle))
                else:
                    _keep(tensor, bytes(content))
    light = onnx.ModelProto()
    light.ParseFromString(model.SerializeToString())  # `model` keeps the memory of what it held
    return light


def weights_in(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers of `graph` and of the graphs inside it, except text."""
    yield from (tensor for tensor in graph.initializer if tensor.data_type != onnx.TensorProto.STRING)
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from weights_in(inner)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Say whether the data of `tensor` lie in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def is_big(tensor: onnx.TensorProto) -> bool:
    """Say whether `tensor` should be a weight of its own rather than part of the graph."""
    return is_external(tensor) or _size_bytes(tensor) >= SMALLEST


def blob_of(tensor: onnx.TensorProto) -> Blob:
    """Return the blob that a tensor, lifted before, refers to."""
    entries = _entries(tensor)
    digest = PurePosixPath(entries["location"]).name
    return Blob(sha256=Sha256(digest), size_bytes=int(entries["length"]))


def read_weight(tensor: onnx.TensorProto, bundle: Path) -> Array:
    """Return the numbers of a weight, those of a big one as they lie in the folder `bundle`."""
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")
    path = bundle / BLOBS / blob_of(tensor).sha256
    return np.memmap(path, dtype, "r", shape=tuple(tensor.dims))


def write_weight(name: str, array: Array, bundle: Path) -> onnx.TensorProto:
    """Return the weight `array`, whose data are written to the folder `bundle` if they are big."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
    if is_big(tensor):
        refer(tensor, store(tensor.raw_data, bundle))
    return tensor


def drop_blobs(before: onnx.GraphProto, after: onnx.GraphProto, bundle: Path) -> None:
    """Remove from the folder `bundle` the data of weights that `before` has and `after` has not."""
    held, kept = (
        {blob_of(w).sha256 for w in weights_in(graph) if is_external(w)} for graph in (before, after)
    )
    for digest in held - kept:
        (bundle / BLOBS / digest).unlink()


def _size_bytes(tensor: onnx.TensorProto) -> int:
    return int(prod(tensor.dims)) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


@contextmanager
def _content(tensor: onnx.TensorProto, source: Path) -> Iterator[_Bytes]:
    """Hand out the raw little-endian bytes of `tensor`."""
    if is_external(tensor):
        with _external(tensor, source) as content:
            yield content
    elif tensor.HasField("raw_data"):
        yield tensor.raw_data
    else:
        yield numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


@contextmanager
def _external(tensor: onnx.TensorProto, source: Path) -> Iterator[_Bytes]:
    entries = _entries(tensor)
    location = PurePosixPath(entries.get("location", ""))
    what = f"weight {tensor.name}"
    if location.is_absolute() or ".." in location.parts or not location.parts:
        raise ModelError(f"{what}: expected its data below the model's folder, got {str(location)!r}")
    path = source.parent / location
    if not path.is_file():
        raise ModelError(f"{what}: expected its data in {path}, found no such file")
    start = int(entries.get("offset", 0))
    size_bytes = path.stat().st_size
    stop = start + int(entries.get("length", size_bytes - start))
    if not 0 <= start <= stop <= size_bytes:
        raise ModelError(f"{what}: expected {stop} bytes in {path}, got {size_bytes}")
    if start == stop:
        yield b""
        return
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as whole,
        whole[start:stop] as part,
    ):
        yield part


def refer(tensor: onnx.TensorProto, blob: Blob) -> None:
    """Make a blob of the bundle the data of `tensor`."""
    _keep(tensor, b"")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    location = f"{BLOBS}/{blob.sha256}"
    for key, value in (("location", location), ("offset", "0"), ("length", str(blob.size_bytes))):
        tensor.external_data.add(key=key, value=value)


def _keep(tensor: onnx.TensorProto, content: bytes) -> None:
    """Make `content` the data of `tensor` itself."""
    plain = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=content)
    tensor.CopyFrom(plain)
