"""NVIDIA's management library, where there is one: the energy that its GPUs have taken so far."""

import ctypes
from typing import Final

from shoal.firmware_configs.schema import PowerSource
from shoal.firmware_configs.sysfs import Tree, Unreadable, Why
from shoal.profiler.energy import Counter, Counters, Reading

LIBRARY: Final = "libnvidia-ml.so.1"


class Nvml:
    """All GPUs of this machine."""

    def __init__(self, _tree: Tree, _source: PowerSource) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise Unreadable(LIBRARY, Why.MISSING) from error
        self._call("nvmlInit_v2")
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        self._devices = []
        for number in range(count.value):
            device = ctypes.c_void_p()
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(number), ctypes.byref(device))
            self._devices.append(device)
        if not self._devices:
            raise Unreadable(LIBRARY, Why.MISSING, "no GPU")

    def read(self) -> Reading:
        """Return a counter for each GPU."""
        counters = {}
        for number, device in enumerate(self._devices):
            millijoules = ctypes.c_ulonglong()
            self._call("nvmlDeviceGetTotalEnergyConsumption", device, ctypes.byref(millijoules))
            counters[f"gpu {number}"] = Counter(joules=millijoules.value / 1e3, range_j=None)
        return Counters(counters=counters)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise Unreadable(LIBRARY, Why.BROKEN, f"{name} says {status}")
