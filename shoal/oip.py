"""The bodies of the Open Inference Protocol v2 over HTTP, for those who answer and those who ask.

Both forms are spoken: tensors as JSON lists, and the binary extension, where the JSON is followed by the
tensors' bytes in order and the header `Inference-Header-Content-Length` tells how long the JSON is.
Source: the KServe "Open Inference Protocol" and Triton's binary tensor data extension.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from shoal.encoding import Json
from shoal.errors import ModelError
from shoal.manifest import Manifest
from shoal.records import ITEM_BYTES, Array, TensorSpec

DATATYPES: Final[Mapping[str, str]] = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_DTYPES: Final = {word: dtype for dtype, word in DATATYPES.items()}

SHORT_JSON_BYTES: Final = 1 << 16
JSON_LENGTH: Final = "Inference-Header-Content-Length"
DEADLINE_MS: Final = "Shoal-Deadline-Ms"
"""Header with which a client says in how many milliseconds it wants the answer or none; the parameter
`deadline_ms` of a request says the same, and the header counts if both do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One output that a client asks for."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks."""

    id: str
    inputs: Mapping[str, Array]
    outputs: tuple[Wanted, ...]
    timeout_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long a client waits, in seconds from when it asked; None: it does not say."""

    timeout_s: float | None
    """From then on it does not listen any longer."""
    deadline_s: float | None
    """After that an answer is of no use to it."""


def times(body: bytes, json_length: str | None, deadline_ms: str | None) -> Times:
    """Return how long the client waits, as far as that can be read without reading tensors.

    `deadline_ms` is the header `DEADLINE_MS`.  If the JSON is long (numbers as text), its parameters are
    taken not to say.  Raises ModelError if a deadline is given that is none.
    """
    parameters: dict[str, Json] = {}
    try:
        head, _ = _split(body, json_length)
        if len(head) <= SHORT_JSON_BYTES and (b'"timeout"' in head or b'"deadline_ms"' in head):
            parameters = json.loads(head)["parameters"]
        timeout = parameters.get("timeout")
    except (ModelError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        timeout, parameters = None, {}
    given = parameters.get("deadline_ms") if deadline_ms is None else deadline_ms
    waits = isinstance(timeout, int) and not isinstance(timeout, bool) and timeout > 0
    timeout_s = timeout / 1e6 if isinstance(timeout, int) and waits else None
    return Times(timeout_s=timeout_s, deadline_s=_deadline_s(given))


def _deadline_s(given: Json) -> float | None:
    """Return a deadline that was given in milliseconds, as a number or as text, in seconds."""
    if given is None:
        return None
    milliseconds = math.nan
    if isinstance(given, int | float | str) and not isinstance(given, bool):
        with suppress(ValueError, OverflowError):
            milliseconds = float(given)
    if not 0 <= milliseconds < math.inf:
        raise ModelError(f"request: deadline_ms: expected milliseconds of 0 or more, got {given!r:.60}")
    return milliseconds / 1e3


def parse_request(body: bytes, json_length: str | None, manifest: Manifest) -> Request:
    """Return the request in `body`, checked against the model.

    Raises ModelError, which names the tensor, what was expected and what came.
    """
    head, tail = _split(body, json_length)
    try:
        message: Json = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"request: expected JSON, got {head[:40]!r} ({error})") from error
    if not isinstance(message, dict):
        raise ModelError("request: expected a JSON object")
    parameters = _object(message.get("parameters", {}), "parameters")
    timeout = parameters.get("timeout")
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 <= timeout < 1 << 63
    ):
        raise ModelError(f"request: parameters.timeout: expected microseconds, got {timeout!r:.60}")
    identity = message.get("id", "")
    if not isinstance(identity, str):
        raise ModelError(f"request: id: expected text, got {identity!r:.60}")
    return Request(
        id=identity,
        inputs=_inputs(message.get("inputs"), tail, manifest),
        outputs=_outputs(message.get("outputs"), bool(parameters.get("binary_data_output")), manifest),
        timeout_s=timeout / 1e6 if timeout else None,
    )


def render_response(
    manifest: Manifest, request: Request, tensors: Mapping[str, Array]
) -> tuple[list[bytes], int | None]:
    """Return the parts of a response body, and the length of its JSON if binary tensors follow it."""
    described: list[Json] = []
    tail: list[bytes] = []
    for wanted in request.outputs:
        tensor = tensors[wanted.name]
        entry: dict[str, Json] = {
            "name": wanted.name,
            "datatype": DATATYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
        }
        if wanted.binary:
            tail.append(tensor.tobytes())
            entry["parameters"] = {"binary_data_size": tensor.nbytes}
        else:
            entry["data"] = [_finite(value) for value in tensor.reshape(-1).tolist()]
        described.append(entry)
    message: dict[str, Json] = {
        "model_name": manifest.name,
        "model_version": "1",
        "outputs": described,
    }
    if request.id:
        message["id"] = request.id
    head = json.dumps(message, separators=(",", ":")).encode()
    return [head, *tail], len(head) if tail else None


def render_request(inputs: Mapping[str, Array]) -> tuple[bytes, int]:
    """Return the body of a request with binary tensors both ways, and the length of its JSON."""
    described: list[Json] = [
        {
            "name": name,
            "datatype": DATATYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": tensor.nbytes},
        }
        for name, tensor in inputs.items()
    ]
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    ours = (tensor.astype(tensor.dtype.newbyteorder("<")) for tensor in inputs.values())
    return b"".join([head, *(tensor.tobytes() for tensor in ours)]), len(head)


def parse_response(content: bytes, json_length: int) -> dict[str, Array]:
    """Return the tensors of a response to `render_request`."""
    found: dict[str, Array] = {}
    at = json_length
    for output in json.loads(content[:json_length])["outputs"]:
        size_bytes = output["parameters"]["binary_data_size"]
        flat = np.frombuffer(content[at : at + size_bytes], dtype=_DTYPES[output["datatype"]])
        found[output["name"]] = flat.reshape(output["shape"])
        at += size_bytes
    return found


def model_metadata(manifest: Manifest) -> Json:
    """Return the model metadata of the protocol; sizes that a request chooses are -1."""
    return {
        "name": manifest.name,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [_port(spec) for spec in manifest.inputs],
        "outputs": [_port(spec) for spec in manifest.outputs],
    }


def parse_ports(metadata: bytes) -> tuple[TensorSpec, ...]:
    """Return the inputs that model metadata names; sizes that a request chooses become 1."""
    return tuple(
        TensorSpec(
            name=port["name"],
            dtype=_DTYPES[port["datatype"]],
            shape=tuple(max(1, int(size)) for size in port["shape"]),
        )
        for port in json.loads(metadata)["inputs"]
    )


def _port(spec: TensorSpec) -> Json:
    shape: list[Json] = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


def _split(body: bytes, json_length: str | None) -> tuple[bytes, memoryview]:
    if json_length is None:
        return body, memoryview(b"")
    if not json_length.isdecimal() or len(json_length) > 18 or int(json_length) > len(body):
        raise ModelError(f"{JSON_LENGTH}: expected 0 to {len(body)}, got {json_length!r:.40}")
    return body[: int(json_length)], memoryview(body)[int(json_length) :]


def _object(value: Json, where: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise ModelError(f"request: {where}: expected an object, got {value!r:.60}")
    return value


def _entries(value: Json, where: str) -> list[dict[str, Json]]:
    if not isinstance(value, list):
        raise ModelError(f"request: {where}: expected a list of tensors, got {value!r:.60}")
    return [_object(entry, f"{where}[{index}]") for index, entry in enumerate(value)]


def _inputs(value: Json, tail: memoryview, manifest: Manifest) -> dict[str, Array]:
    specs = {spec.name: spec for spec in manifest.inputs}
    sizes: dict[str, int] = {}
    found: dict[str, Array] = {}
    for entry in _entries(value, "inputs"):
        name = entry.get("name")
        if not isinstance(name, str) or name not in specs:
            raise ModelError(f"request: expected inputs named {sorted(specs)}, got {name!r:.80}")
        if name in found:
            raise ModelError(f"request: input {name} comes twice")
        shape = _shape(entry, specs[name], sizes)
        found[name], tail = _tensor(entry, specs[name], shape, tail)
    missing = specs.keys() - found.keys()
    if missing:
        raise ModelError(f"request: expected inputs named {sorted(specs)}, got no {sorted(missing)}")
    if len(tail):
        raise ModelError(f"request: {len(tail)} bytes follow the last binary tensor")
    return found


def _shape(entry: Mapping[str, Json], spec: TensorSpec, sizes: dict[str, int]) -> tuple[int, ...]:
    """Return the entry's shape if it fits; named sizes must be the same wherever they occur."""
    if entry.get("datatype") != DATATYPES[spec.dtype]:
        raise ModelError(
            f"request: input {spec.name}: expected datatype {DATATYPES[spec.dtype]}, got "
            f"{entry.get('datatype')!r:.40}"
        )
    shape = entry.get("shape")
    expected = [dim if isinstance(dim, int) else sizes.get(dim, dim) for dim in spec.shape]
    fits = isinstance(shape, list) and len(shape) == len(expected)
    if fits and isinstance(shape, list):
        for got, want in zip(shape, expected, strict=True):
            whole = isinstance(got, int) and not isinstance(got, bool) and got >= 0
            fits = fits and whole and (isinstance(want, str) or got == want)
    if not fits or not isinstance(shape, list):
        raise ModelError(f"request: input {spec.name}: expected shape {expected}, got {shape!r:.80}")
    for dim, size in zip(spec.shape, shape, strict=True):
        if isinstance(dim, str) and sizes.setdefault(dim, size) != size:  # type: ignore[arg-type]
            raise ModelError(f"request: input {spec.name}: expected shape {expected}, got {shape!r:.80}")
    return tuple(int(size) for size in shape)  # type: ignore[arg-type]


def _tensor(
    entry: Mapping[str, Json], spec: TensorSpec, shape: tuple[int, ...], tail: memoryview
) -> tuple[Array, memoryview]:
    """Return the tensor of an entry, and the binary data after it; binary data is not copied."""
    count = math.prod(shape)
    size_bytes = count * ITEM_BYTES[spec.dtype]
    parameters = _object(entry.get("parameters", {}), f"input {spec.name} parameters")
    declared = parameters.get("binary_data_size")
    if declared is None:
        return _from_json(entry.get("data"), spec, shape), tail
    if declared != size_bytes or len(tail) < size_bytes:
        raise ModelError(
            f"request: input {spec.name}: expected {size_bytes} bytes of binary data for "
            f"{list(shape)}, got {declared!r:.40} declared and {len(tail)} there"
        )
    if spec.dtype == "bool" and np.frombuffer(tail[:size_bytes], dtype=np.uint8).max(initial=0) > 1:
        raise ModelError(f"request: input {spec.name}: expected bytes of 0 and 1, got others")
    flat = np.frombuffer(tail[:size_bytes], dtype=np.dtype(spec.dtype).newbyteorder("<"))
    return flat.reshape(shape), tail[size_bytes:]


def _from_json(data: Json, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if not isinstance(data, list):
        raise ModelError(f"request: input {spec.name}: expected data as a list, got {data!r:.60}")
    try:
        tensor = np.array(data)
        kind = np.dtype(spec.dtype).kind
        allowed = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[kind]
        if tensor.dtype.kind not in allowed:
            raise ModelError(f"request: input {spec.name}: expected {spec.dtype} data, got {data!r:.60}")
        if kind in "iu" and tensor.size:
            limits = np.iinfo(spec.dtype)
            if int(tensor.min()) < limits.min or int(tensor.max()) > limits.max:
                raise ModelError(f"request: input {spec.name}: a value does not fit {spec.dtype}")
        with np.errstate(over="raise"):
            return tensor.astype(spec.dtype).reshape(shape)
    except FloatingPointError as error:
        raise ModelError(f"request: input {spec.name}: a value does not fit {spec.dtype}") from error
    except (ValueError, OverflowError, TypeError) as error:
        raise ModelError(
            f"request: input {spec.name}: expected {math.prod(shape)} values for {list(shape)}: {error}"
        ) from error


def _outputs(value: Json, binary: bool, manifest: Manifest) -> tuple[Wanted, ...]:
    names = [spec.name for spec in manifest.outputs]
    if value is None:
        return tuple(Wanted(name=name, binary=binary) for name in names)
    wanted = []
    for entry in _entries(value, "outputs"):
        name = entry.get("name")
        if not isinstance(name, str) or name not in names:
            raise ModelError(f"request: expected outputs named {names}, got {name!r:.80}")
        parameters = _object(entry.get("parameters", {}), f"output {name} parameters")
        if parameters.get("classification"):
            raise ModelError(f"request: output {name}: the classification extension is not offered")
        wanted.append(Wanted(name=name, binary=bool(parameters.get("binary_data", binary))))
    return tuple(wanted)


def _finite(value: object) -> Json:
    """Return a JSON number; what JSON cannot say (NaN, infinities) becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value  # type: ignore[return-value]
