"""Reads an ONNX file, and refuses in words what cannot be exported."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import onnx
from onnx import helper

from shoal.errors import ModelError
from shoal.exporter.view import MAIN_DOMAINS
from shoal.records import Sha256
from shoal.session import open_session

OLDEST_OPSET: Final = 7
"""onnxruntime promises to run models from here on."""
SAFE_FORMAT: Final = 8
"""Every onnxruntime that we accept opens this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model comes from."""

    path: Path
    sha256: Sha256
    """Of the ONNX file alone."""
    opset: int


def load(path: Path) -> tuple[Source, onnx.ModelProto]:
    """Return where a model comes from, and the model in the file `path`.

    Raises ModelError if that is not an ONNX file, or one of a version that is not supported.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise ModelError(f"{path}: expected an ONNX file, found {found}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: expected a readable file, got {error.strerror}") from error
    model = _parse(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return Source(path=path, sha256=Sha256(digest), opset=_check_versions(path, model)), model


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that `model` uses, 0 if it names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in MAIN_DOMAINS), default=0)


def _parse(path: Path, content: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's error class depends on its implementation
        raise ModelError(f"{path}: expected an ONNX file, got {len(content)} other bytes") from error
    if not (model.ir_version and model.opset_import and model.graph.output):
        raise ModelError(
            f"{path}: expected an ONNX file, got {len(content)} bytes without outputs or version"
        )
    return model


def _check_versions(path: Path, model: onnx.ModelProto) -> int:
    """Return the opset of `model`.  Raises ModelError, with what is supported, if that is not."""
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if OLDEST_OPSET <= opset <= newest and _opens(opset, model.ir_version):
        return opset
    opsets = (version for version in range(newest, OLDEST_OPSET, -1) if _opens(version, SAFE_FORMAT))
    formats = (
        version for version in range(onnx.IR_VERSION, SAFE_FORMAT, -1) if _opens(OLDEST_OPSET, version)
    )
    raise ModelError(
        f"{path}: expected opset {OLDEST_OPSET} to {next(opsets, OLDEST_OPSET)} of ai.onnx and format (IR) "
        f"{next(formats, SAFE_FORMAT)} or older, got opset {opset} and format {model.ir_version}"
    )


def _opens(opset: int, ir_version: int) -> bool:
    """Say whether the onnxruntime here opens models of these versions, by letting it open one."""
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "version", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, ir_version=ir_version, opset_imports=opsets)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "version.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            open_session(path)
        except ModelError:
            return False
    return True
