"""Quantises the products of a segment to int8 with onnxruntime's own quantiser.

Dynamic: weights become eight bits with a scale for each column, what flows in is quantised at each run by
its own range.  Only products with constant float32 weights change; tables of embeddings and convolutions
stay.  The eight bits are unsigned: products of unsigned and signed bytes overflow on x86 processors without
VNNI, which makes the error larger there than on other boards.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import onnx

import shoal.session  # noqa: F401  before onnxruntime: it sets the environment for it
from shoal.exporter.normalise import prune, strip_notes
from shoal.exporter.weights import lift_weights

from onnxruntime.quantization import QuantType, quantize_dynamic  # isort: skip

IN_ONE_FILE_BYTES: Final = 1_500_000_000
"""Models up to here are written as one file; the format ends at 2 GB."""
_SEEN: Final = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Tells the quantiser not to ask on the log whether shapes have been inferred."""


def quantise(path: Path, folder: Path) -> onnx.ModelProto | None:
    """Return the segment in the file `path` in int8, its new weights written to the bundle in `folder`.

    None if it has no product that can be quantised.
    """
    model = onnx.load(path)
    before = (model.ir_version, list(model.opset_import))
    size_bytes = model.ByteSize()
    model.metadata_props.add(key=_SEEN[0], value=_SEEN[1])
    with TemporaryDirectory(dir=folder) as place:
        made = Path(place) / "int8.onnx"
        quantize_dynamic(
            model,
            made,
            op_types_to_quantize=["MatMul"],  # it makes MatMul of Gemm first
            per_channel=True,
            weight_type=QuantType.QUInt8,
            use_external_data_format=size_bytes > IN_ONE_FILE_BYTES,
        )
        found = onnx.load(made, load_external_data=False)
        if not any(node.op_type == "MatMulInteger" for node in found.graph.node):
            return None
        found = lift_weights(strip_notes(prune(found)), made, folder)
    if not any(node.domain == "com.microsoft" for node in found.graph.node):
        del found.opset_import[:]
        found.opset_import.extend(before[1])
    found.ir_version = before[0]
    return found
