"""One segment, ready to run: the only module that knows onnxruntime."""

import logging
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when onnxruntime is imported
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # else NVIDIA's libraries round float32 to 10 bits on their own

import numpy as np
import onnxruntime

from shoal.errors import BoardError, ModelError
from shoal.records import Array

log = logging.getLogger(__name__)

CPU: Final = "CPUExecutionProvider"
"""Every onnxruntime has it, and it takes every segment."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A tensor in the memory of a device."""

    value: onnxruntime.OrtValue

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""
        return tuple(self.value.shape())

    def host(self) -> Array:
        """Return a copy of it in the host's memory."""
        return np.asarray(self.value.numpy())


NONE_STAGED: Final[Mapping[str, Staged]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a run made."""

    arrays: Mapping[str, Array]
    """In the host's memory."""
    staged: Mapping[str, Staged]
    """What was left in that of the device."""
    took_s: float
    """By the wall clock; copies to the device and back are left out."""


class Session:
    """An ONNX file opened on this machine."""

    device: str | None = None
    """In whose memory it works, as onnxruntime calls it; None: in the host's."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        where: str,
        fixed: Mapping[str, Array] | None = None,
        rows: Mapping[str, int] | None = None,
        device: str | None = None,
    ) -> None:
        """Take an open session, which works in the memory of `device`.

        `fixed` are inputs that are the same in every run, `rows` says of inputs and outputs that have the
        board's own rows along which axis these lie.
        """
        self.rows = dict(rows or {})
        self.device = device
        self._session = session
        self._where = where
        self._fixed = dict(fixed or {})
        self._takes = tuple(port.name for port in session.get_inputs())
        self.inputs = tuple(name for name in self._takes if name not in self._fixed)
        self.outputs = tuple(port.name for port in session.get_outputs())
        self._left = frozenset(port.name for port in session.get_outputs() if "int" not in port.type)
        """What it makes in the memory of its device: not ids and sizes, at which the host looks."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the outputs (all, or those named) for `inputs`, which may hold more than is needed.

        Raises ModelError with onnxruntime's words if a tensor is missing or does not fit, BoardError if
        the board has not the memory for it.
        """
        names = list(self.outputs if outputs is None else outputs)
        try:
            feeds = {n: self._fixed[n] if n in self._fixed else inputs[n] for n in self._takes}
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise self._fault(error) from error

    def work(
        self,
        inputs: Mapping[str, Array],
        staged: Mapping[str, Staged] = NONE_STAGED,
        stays: Collection[str] = (),
    ) -> Made:
        """Run among others on the same board: what is in `staged` is taken from the device.

        Outputs that may stay there are left there, if there is one with memory of its own; whole numbers
        never are.  Raises as `run`.
        """
        if self.device is None:
            if staged:  # another session's, which its device takes and this one's does not
                inputs = {**inputs, **{n: staged[n].host() for n in self.inputs if n in staged}}
            begun_s = time.perf_counter()
            made = self.run(inputs)
            return Made(arrays=made, staged=NONE_STAGED, took_s=time.perf_counter() - begun_s)
        try:
            return self._work_on(self.device, inputs, staged, stays)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise self._fault(error) from error

    def _work_on(
        self, device: str, inputs: Mapping[str, Array], staged: Mapping[str, Staged], stays: Collection[str]
    ) -> Made:
        bound = self._session.io_binding()
        for name in self._takes:
            if name in staged:
                bound.bind_ortvalue_input(name, staged[name].value)
                continue
            array = np.asarray(self._fixed[name] if name in self._fixed else inputs[name], order="C")
            if array.dtype.kind in "iu":  # ids and sizes: the host looks at them, to know shapes
                bound.bind_cpu_input(name, array)
            else:
                bound.bind_ortvalue_input(name, to_device(array, device))
        for name in self.outputs:
            bound.bind_output(name, device if name in self._left else "cpu")
        begun_s = time.perf_counter()
        self._session.run_with_iobinding(bound)
        bound.synchronize_outputs()
        took_s = time.perf_counter() - begun_s
        values = dict(zip(self.outputs, map(Staged, bound.get_outputs()), strict=True))
        kept = self._left.intersection(stays)
        return Made(
            arrays={name: value.host() for name, value in values.items() if name not in kept},
            staged={name: value for name, value in values.items() if name in kept},
            took_s=took_s,
        )

    def _fault(self, error: Exception) -> BoardError | ModelError:
        """Return what `run` raises where this went wrong."""
        if isinstance(error, KeyError):
            return ModelError(f"{self._where}: no input tensor {error}")
        kind = BoardError if _NO_MEMORY.search(str(error)) else ModelError
        return kind(f"{self._where}: {_first_line(error)}")


_NO_MEMORY: Final = re.compile(r"allocat|bad_alloc|out of memory", re.IGNORECASE)
"""In what onnxruntime says, the only sign of what is the board's fault and not the request's."""


def open_session(
    model: Path,
    *,
    threads: int = 1,
    spin_us: int = 0,
    providers: Sequence[str] = (CPU,),
    fixed: Mapping[str, Array] | None = None,
    rows: Mapping[str, int] | None = None,
) -> Session:
    """Return the ONNX file `model`, its external data beside it, ready to run on `threads` cores.

    Threads without work sleep.  With `spin_us` they first look for more for so many microseconds while a
    run is under way, never between runs: a tenth less latency on two free cores, for a tenth more processor
    time; where the cores are not free, or a quota counts, it is slower (docs/boards.md).  onnxruntime before
    1.26 knows no limit, so there they look until the run ends.

    Of `providers`, best first, those that this onnxruntime has run it, and the processor what they leave;
    one that does not take the segment at all is logged.

    Inputs that are `fixed` need not be given to its runs; for `rows` see `Session`.  Raises ModelError,
    with the file and what onnxruntime said, if it cannot be opened.
    """
    if not model.is_file():
        raise ModelError(f"{model}: expected an ONNX file, found none")
    options = _options(threads, spin_us)
    session, best = _session(model, options, usable_providers(providers), threads)
    return Session(session, model.name, fixed, rows, device_of(best))


def _session(
    model: Path, options: onnxruntime.SessionOptions, providers: Sequence[str], threads: int
) -> tuple[onnxruntime.InferenceSession, str]:
    """Return a session with the first of `providers` that can, and the best that it then has."""
    settings = [{_OWN_THREADS[each]: str(threads)} if each in _OWN_THREADS else {} for each in providers]
    try:
        session = onnxruntime.InferenceSession(
            str(model), options, providers=list(providers), provider_options=settings, enable_fallback=0
        )
    except Exception as error:  # onnxruntime's exceptions have no common base
        first, *others = providers
        if not others:
            raise ModelError(f"{model}: {_first_line(error)}") from error
        log.warning("%s: not run by %s, but by %s: %s", model.name, first, others[0], _first_line(error))
        return _session(model, options, others, threads)
    takers = _takers(session)
    best = next((each for each in providers if each in takers), CPU)
    if best != providers[0]:
        log.warning(
            "%s: not run by %s, but by %s: it takes none of its nodes", model.name, providers[0], best
        )
    return session, best


_OWN_THREADS: Final = {
    "OpenVINOExecutionProvider": "num_of_threads",
    "XnnpackExecutionProvider": "intra_op_num_threads",
}
"""Providers that compute on the processor with threads of their own, and how these are counted."""


def _takers(session: onnxruntime.InferenceSession) -> frozenset[str]:
    """Return the providers that run some of the session's nodes; before 1.24, those that could start."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return frozenset(session.get_providers())
    return frozenset(each.ep_name for each in session.get_provider_graph_assignment_info())


def _options(threads: int, spin_us: int = 0) -> onnxruntime.SessionOptions:
    """Return how a session is run.

    Each has threads of its own: onnxruntime's shared ones spin, and Python cannot tell them not to.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # never left to the default: it pins cores it may not have
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    if spin_us:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    _share_arena()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 4  # errors are raised; printing them too would say everything twice
    return options


@cache
def _share_arena() -> None:
    """Let all sessions take their tensors from one pool, that each would keep for itself otherwise."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    grow_as_needed = onnxruntime.OrtArenaCfg(0, 1, -1, -1)  # and not by powers of two
    onnxruntime.create_and_register_allocator(memory, grow_as_needed)


def shrink() -> None:
    """Give back what the sessions' pool keeps: as much as the largest run so far took."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    _caster("float16").run(None, {"x": np.zeros(0, np.float32)}, options)  # takes nothing of the pool itself


CASTS: Final = {
    "float16": b'\x08\x08:2\n\x17\n\x01x\x12\x01y"\x04Cast*\t\n\x02to\x18\n\xa0\x01\x02\x12\x01cZ\t\n\x01x'
    b"\x12\x04\n\x02\x08\x01b\t\n\x01y\x12\x04\n\x02\x08\nB\x04\n\x00\x10\r",
    "float32": b'\x08\x08:2\n\x17\n\x01x\x12\x01y"\x04Cast*\t\n\x02to\x18\x01\xa0\x01\x02\x12\x01cZ\t\n\x01x'
    b"\x12\x04\n\x02\x08\nb\t\n\x01y\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r",
}
"""ONNX models of one Cast from `x` to `y`, float32 to float16 and back: boards have no `onnx` for it."""


def cast(array: Array, dtype: Literal["float16", "float32"]) -> Array:
    """Return `array`, float32 or float16, as the other.

    numpy does not use the instructions that processors have for it: 7 times slower on x86 with F16C.
    """
    (made,) = _caster(dtype).run(None, {"x": np.ascontiguousarray(array)})
    return np.asarray(made)


def widen_into(out: Array, array: Array) -> None:
    """Write `array`, float16, to `out`: as many float32, in C order."""
    session = _caster("float32")
    bound = session.io_binding()
    bound.bind_cpu_input("x", np.ascontiguousarray(array))
    bound.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    session.run_with_iobinding(bound)


@cache
def _caster(dtype: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(CASTS[dtype], _options(1), providers=[CPU])


def runtime_version() -> str:
    """Return the version of onnxruntime."""
    return str(onnxruntime.__version__)


def usable_providers(wanted: Sequence[str]) -> tuple[str, ...]:
    """Return those of `wanted` that this onnxruntime has, in their order, the processor's at the end."""
    available = onnxruntime.get_available_providers()
    return (*(each for each in wanted if each in available and each != CPU), CPU)


_DEVICES: Final = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
"""Providers that work in memory of a device, by onnxruntime's word for it; the others work in the host's."""


def device_of(provider: str) -> str | None:
    """Return the device in whose memory `provider` works; None: in the host's."""
    return _DEVICES.get(provider)


def to_device(array: Array, device: str) -> onnxruntime.OrtValue:
    """Return a copy of `array` in the memory of `device`; its `numpy()` is a copy in the host's."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, device)


def _first_line(error: Exception) -> str:
    """Return what onnxruntime said, without where in its source it said so."""
    words = str(error).strip().split("\n")[0]
    return re.sub(r"/\S*onnxruntime_src/\S+ (?:\S+::)?", "", words)[:400]
