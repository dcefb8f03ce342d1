"""How fast tensors go to a device with memory of its own, and back."""

import statistics
import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from shoal.session import to_device

STAGED_BYTES: Final = 1 << 20
"""As much as a segment hands on: 197 tokens of 768 values are 0.6 MB."""
COPIES: Final = 9
"""After one that is not counted: the first reserves the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """Seconds for each byte of a tensor of 1 MiB."""

    to_device_s: float
    to_host_s: float


def measure_staging(device: str) -> Staging:
    """Copy a tensor to `device`, as onnxruntime calls it, and back; take the middle of several copies."""
    tensor = np.ones(STAGED_BYTES // 4, np.float32)
    to_device_s, to_host_s = [], []
    for _ in range(COPIES + 1):
        begun_s = time.perf_counter()
        staged = to_device(tensor, device)
        there_s = time.perf_counter()
        staged.numpy()
        to_device_s.append(there_s - begun_s)
        to_host_s.append(time.perf_counter() - there_s)
    return Staging(
        to_device_s=statistics.median(to_device_s[1:]) / STAGED_BYTES,
        to_host_s=statistics.median(to_host_s[1:]) / STAGED_BYTES,
    )
