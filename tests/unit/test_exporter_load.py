"""Files that are no models, or none that can be exported, are refused in words."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from shoal.errors import ModelError
from shoal.exporter.export import export
from tests import models


def refuse(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        export(path, path.parent / "bundle")
    assert not [other for other in path.parent.iterdir() if "bundle" in other.name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip",
        np.random.default_rng(0).bytes(4096),
        onnx.ModelProto(ir_version=8).SerializeToString(),
    ],
    ids=["empty", "zip", "random", "nothing in it"],
)
def test_bytes_that_are_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    refuse(path, rf"x\.onnx: expected an ONNX file, got {len(content)} ")


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").mkdir()
    refuse(tmp_path / "x.onnx", r"x\.onnx: expected an ONNX file, found a folder")
    refuse(tmp_path / "y.onnx", r"y\.onnx: expected an ONNX file, found nothing")


@pytest.mark.parametrize("opset", [6, 1000])
def test_an_opset_that_is_not_supported(opset: int, tmp_path: Path) -> None:
    model = models.mlp()
    model.opset_import[0].version = opset
    onnx.save(model, tmp_path / "x.onnx")
    refuse(
        tmp_path / "x.onnx",
        rf"x\.onnx: expected opset 7 to 2\d of ai\.onnx and .* got opset {opset} and format 8",
    )


def test_a_format_that_is_not_supported(tmp_path: Path) -> None:
    model = models.mlp()
    model.ir_version = 1000
    onnx.save(model, tmp_path / "x.onnx")
    refuse(
        tmp_path / "x.onnx", r"x\.onnx: expected .* format \(IR\) 1\d or older, got opset 17 and format 1000"
    )


def test_no_standard_operators_at_all(tmp_path: Path) -> None:
    model = models.mlp()
    model.opset_import[0].domain = "com.example"
    onnx.save(model, tmp_path / "x.onnx")
    refuse(tmp_path / "x.onnx", "got opset 0 and format 8")


def _rename(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def _orphan(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nobody"


def _unknown(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Reluu"


def _misfit(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] += 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_rename, "makes tensor gemm_0, which has another maker"),
        (_orphan, "reads tensor nobody, which no input, weight or earlier node makes"),
        (_unknown, "Reluu"),
        (_misfit, "ONNXRuntimeError"),
    ],
)
def test_graphs_that_are_wrong(
    spoil: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path
) -> None:
    model = models.mlp()
    spoil(model)
    onnx.save(model, tmp_path / "x.onnx")
    refuse(tmp_path / "x.onnx", rf"x\.onnx: .*{message}")


def _external(folder: Path) -> Path:
    onnx.save(
        models.mlp(), folder / "x.onnx", save_as_external_data=True, location="x.data", size_threshold=0
    )
    return folder / "x.onnx"


def test_external_data_that_are_missing(tmp_path: Path) -> None:
    path = _external(tmp_path)
    (tmp_path / "x.data").unlink()
    refuse(path, r"x\.onnx: weight w0: expected its data in .*x\.data, found no such file")


def test_external_data_that_are_short(tmp_path: Path) -> None:
    path = _external(tmp_path)
    (tmp_path / "x.data").write_bytes(b"short")
    refuse(path, r"weight w0: expected \d+ bytes in .*x\.data, got 5")


@pytest.mark.parametrize("location", ["/etc/passwd", "../x.data", ""])
def test_external_data_elsewhere(location: str, tmp_path: Path) -> None:
    path = _external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    refuse(path, r"weight w0: expected its data below the model's folder, got ")
