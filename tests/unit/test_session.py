"""Segments are run as the board's configuration says, by the real onnxruntime."""

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from shoal.session import CPU, open_session, usable_providers

SIZE = 256


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a chain of products, large enough to be shared among threads."""
    weight = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32) / SIZE
    nodes = [helper.make_node("MatMul", [f"x{index}", "w"], [f"x{index + 1}"]) for index in range(8)]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE, SIZE])
        for name in ("x0", f"x{len(nodes)}")
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    file = tmp_path / "products.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


INPUTS = {"x0": np.random.default_rng(1).standard_normal((SIZE, SIZE)).astype(np.float32)}


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize("spin_us", [0, 1000])
def test_threads_are_as_many_as_asked_for_and_sleep_between_runs(model: Path, spin_us: int) -> None:
    before = count_threads()
    session = open_session(model, threads=3, spin_us=spin_us)
    assert count_threads() - before == 2, "the caller's is the third"
    session.run(INPUTS)
    begun_s = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - begun_s < 0.05


def test_who_spins_answers_the_same(model: Path) -> None:
    [want] = open_session(model).run(INPUTS).values()
    [got] = open_session(model, threads=2, spin_us=200).run(INPUTS).values()
    assert np.allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), rtol=1e-5, atol=1e-7)


IDLE = "AzureExecutionProvider"
"""A real provider of the onnxruntime of the package index: it takes none of these nodes."""
OPENVINO = "OpenVINOExecutionProvider"


def test_providers_are_those_of_the_board_that_this_onnxruntime_has() -> None:
    assert usable_providers(("NoSuchExecutionProvider", CPU)) == (CPU,)
    assert usable_providers(()) == (CPU,)


@pytest.mark.skipif(IDLE not in onnxruntime.get_available_providers(), reason="another build of onnxruntime")
def test_a_provider_that_takes_nothing_of_a_segment_is_told(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert usable_providers((CPU, IDLE)) == (IDLE, CPU)
    [want] = open_session(model).run(INPUTS).values()
    assert caplog.messages == []
    [got] = open_session(model, providers=(IDLE, CPU)).run(INPUTS).values()
    assert caplog.messages == [f"products.onnx: not run by {IDLE}, but by {CPU}: it takes none of its nodes"]
    assert np.array_equal(got, want)


def test_a_provider_that_cannot_start_is_told_and_done_without(
    model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double stands for the provider: no onnxruntime of the package index has one that raises here."""
    real = onnxruntime.InferenceSession

    def without_device(path: str, options: object, *, providers: list[str], **other: object) -> object:
        if "CUDAExecutionProvider" in providers:
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        return real(path, options, providers=providers, **other)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_device)
    session = open_session(model, providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU))
    assert caplog.messages == [
        f"products.onnx: not run by CUDAExecutionProvider, but by {CPU}: "
        "CUDA failure 100: no CUDA-capable device is detected"
    ]
    assert session.run(INPUTS).keys() == {"x8"}


@pytest.mark.skipif(OPENVINO not in onnxruntime.get_available_providers(), reason="no onnxruntime-openvino")
def test_openvino_runs_a_segment_as_exactly_as_the_processor(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [want] = open_session(model).run(INPUTS).values()
    [got] = open_session(model, providers=(OPENVINO, CPU)).run(INPUTS).values()
    assert caplog.messages == []
    assert np.allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), rtol=1e-5, atol=1e-7)
