"""One request and its right answer, kept with a bundle: what a plan must answer before it is put in force.

It is a file of numpy's, with the tensors under their names behind `in/` and `out/`.  The same tensors give
the same bytes.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from zipfile import BadZipFile

import numpy as np

from shoal.errors import ModelError
from shoal.records import Array

EXACT: Final = 1e-3
"""An answer may be off by this share of its largest number: boards of several kinds round differently, ..."""
ROUNDED: Final = 0.5
"""... by this where boards exchange rounded numbers, which shows only what is quite wrong, ..."""
CODED: Final = 10.0
"""... and by this where they exchange means or codes, made for requests that may be quite unlike this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A request, and what the original model answers to it."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def pack(golden: Golden) -> bytes:
    """Return the content of the file."""
    named = {f"in/{name}": tensor for name, tensor in sorted(golden.inputs.items())}
    named |= {f"out/{name}": tensor for name, tensor in sorted(golden.outputs.items())}
    content = io.BytesIO()
    np.savez(content, **named)  # type: ignore[arg-type]
    return content.getvalue()


def unpack(content: bytes) -> Golden:
    """Return what is in the file.  Raises ModelError if that is none."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            tensors = {name: found[name] for name in found.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ModelError(f"golden request: expected tensors by name, got {error}") from error
    inputs = {name.removeprefix("in/"): t for name, t in tensors.items() if name.startswith("in/")}
    outputs = {name.removeprefix("out/"): t for name, t in tensors.items() if name.startswith("out/")}
    if not inputs or not outputs:
        raise ModelError(f"golden request: expected inputs and outputs, got {sorted(tensors)}")
    return Golden(inputs=inputs, outputs=outputs)


def why_wrong(golden: Golden, answer: Mapping[str, Array], allowed: float) -> str:
    """Return what is wrong with an answer to the golden request; empty if nothing is.

    Numbers may be off by the share `allowed` of the largest one of their output.
    """
    for name, wanted in golden.outputs.items():
        got = answer.get(name)
        if got is None or (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            described = "none" if got is None else f"{got.dtype} {list(got.shape)}"
            return f"output {name}: expected {wanted.dtype} {list(wanted.shape)}, got {described}"
        wide, wide_got = wanted.astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(wide)
        if not np.array_equal(wide[~finite], wide_got[~finite], equal_nan=True):
            return f"output {name}: NaN or infinity differ"
        scale = float(np.max(np.abs(wide[finite]), initial=0.0))
        error = float(np.max(np.abs(wide_got[finite] - wide[finite]), initial=0.0))
        if not error <= allowed * scale:
            return f"output {name}: off by {error:.2g} where the largest number is {scale:.2g}"
    return ""
