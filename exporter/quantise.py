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
from shoal.errors import ModelError
from shoal.exporter.normalise import prune, strip_notes
from shoal.exporter.view import MAIN_DOMAINS
from shoal.exporter.weights import lift_weights
from shoal.manifest import Segment, file_of

from onnxruntime.quantization import QuantType, quantize_dynamic  # isort: skip

IN_ONE_FILE_BYTES: Final = 1_500_000_000
"""Models up to here are written as one file; the format ends at 2 GB."""
_SEEN: Final = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Tells the quantiser not to ask on the log whether shapes have been inferred."""


def quantise(segment: Segment, folder: Path) -> onnx.ModelProto | None:
    """Return a segment of the bundle in `folder` in int8; its new weights are written there.

    None if it has no product that can be quantised.  Raises ModelError if the quantiser cannot do it.
    """
    model = onnx.load(folder / file_of(segment.name), load_external_data=False)
    ir_version = model.ir_version
    model.metadata_props.add(key=_SEEN[0], value=_SEEN[1])
    marked = folder / file_of(f"{segment.name}.marked")  # beside the blobs, so that it finds its weights
    with TemporaryDirectory(dir=folder) as place:
        made = Path(place) / file_of(segment.name)
        try:
            marked.write_bytes(model.SerializeToString())
            quantize_dynamic(
                marked,
                made,
                op_types_to_quantize=["MatMul"],  # it makes MatMul of Gemm first
                per_channel=True,
                weight_type=QuantType.QUInt8,
                use_external_data_format=segment.weight_bytes > IN_ONE_FILE_BYTES,
            )
        except Exception as error:  # whatever it stumbles over
            words = str(error).strip().split("\n")[0].replace(f"{folder}/", "")
            raise ModelError(f"onnxruntime's quantiser: {words[:200]}") from error
        finally:
            marked.unlink(missing_ok=True)
        found = onnx.load(made, load_external_data=False)
        if not any(node.op_type == "MatMulInteger" for node in found.graph.node):
            return None
        found = lift_weights(strip_notes(prune(found)), made, folder)
    used = {node.domain for node in found.graph.node} | set(MAIN_DOMAINS)
    opsets = [entry for entry in found.opset_import if entry.domain in used]
    found.ClearField("opset_import")  # the quantiser names its own in any case
    found.opset_import.extend(opsets)
    found.ir_version = ir_version
    return found
