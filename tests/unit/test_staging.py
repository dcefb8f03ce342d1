"""Copies to a device are timed, and told where there is one."""

from dataclasses import replace

import pytest

from shoal.agent.look import BoardFound, render
from shoal.profiler.staging import Staging, measure_staging
from shoal.session import CPU, device_of
from shoal.vitals import Health

FOUND = BoardFound(
    board="jetson-orin-nano",
    title="NVIDIA Jetson Orin Nano",
    bundle="vit",
    threads=6,
    providers=("CUDAExecutionProvider", CPU),
    staging=Staging(to_device_s=2e-10, to_host_s=5e-10),
    first_s=1.0,
    took_s=2.0,
    kinds=(),
    skipped=(),
    power=None,
    health=Health(
        state="ok",
        temperature_c=None,
        capacity=1.0,
        notes=(),
        memory_free_bytes=None,
        memory_pressure=None,
        disk_free_bytes=None,
    ),
    interfaces=(),
    links={},
)


def test_only_providers_with_memory_of_their_own_have_a_device() -> None:
    assert device_of("TensorrtExecutionProvider") == "cuda"
    assert device_of("OpenVINOExecutionProvider") is None
    assert device_of(CPU) is None


def test_copies_are_timed() -> None:
    """The processor stands for the device: onnxruntime wraps what it would copy to a GPU."""
    found = measure_staging("cpu")
    assert 1e-12 < found.to_device_s < 1e-6
    assert 0 < found.to_host_s < 1e-6


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            FOUND,
            f"run by: CUDAExecutionProvider, {CPU}; staging is not in the times: "
            "0.2 ns a byte to the device, 0.5 ns back",
        ),
        (replace(FOUND, providers=(CPU,), staging=None), f"run by: {CPU}"),
    ],
)
def test_a_profile_tells_who_runs_segments_and_what_staging_takes(found: BoardFound, line: str) -> None:
    assert line in render(found).splitlines()
