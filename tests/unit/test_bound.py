"""Sessions that work in the memory of a device, and what of a program's tensors stays there.

No device is at hand: the processor stands for it.  What is bound and what is left where is as with a GPU, but
onnxruntime only wraps what it would copy; that a GPU computes right, or how fast, is not shown.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from shoal import session as sessions
from shoal.agent.attempt import Attempt
from shoal.agent.inbox import Inbox
from shoal.agent.spare import Spare
from shoal.agent.turns import turns_in
from shoal.errors import ModelError
from shoal.frames import Header, Kind
from shoal.program import Collective, Exchange, Program, Run
from shoal.records import Array, BoardId
from shoal.session import CPU, Session, open_session
from shoal.staging import staying

A, B = BoardId("a"), BoardId("b")
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def model(folder: Path, name: str, op: str, takes: Sequence[str], makes: Sequence[str]) -> Path:
    """Write a segment that makes each of its outputs of all its inputs by an operator."""
    kinds = {"ids": TensorProto.INT64}
    given, made = (
        [helper.make_tensor_value_info(each, kinds.get(each, TensorProto.FLOAT), None) for each in names]
        for names in (takes, makes)
    )
    graph = helper.make_graph([helper.make_node(op, takes, [each]) for each in makes], name, given, made)
    file = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Session]:
    """Open sessions as if the processor had memory of its own; the plain way to run them fails."""
    monkeypatch.setitem(sessions._DEVICES, CPU, "cpu")

    def opened(file: Path) -> Session:
        found = open_session(file)
        monkeypatch.setattr(found, "run", None)
        return found

    return opened


def test_what_stays_on_the_device_is_what_only_runs_hand_on() -> None:
    ports = {
        "first": (("x",), ("h", "k", "answer", "late", "rows")),
        "second": (("h", "K", "late"), ("y",)),
        "third": (("y", "rows"), ("z",)),
        "halves": (("rows",), ("part",)),
    }
    gather = Collective(
        kind="gather", tag=1, tensors=("k",), made=("K",), axes=(0,), boards=(A, B), root=None
    )
    parts = Collective(
        kind="gather", tag=2, tensors=("part",), made=("PART",), axes=(0,), boards=(A, B), root=None, chunks=2
    )
    program = Program(
        steps=(
            Exchange(kind="recv", tag=0, tensors=("x",), peer=B),
            Run(segment="first"),
            gather,
            Run(segment="second"),
            Run(segment="third"),
            Exchange(kind="send", tag=3, tensors=("late",), peer=B),
            Run(segment="halves", chunks=2),
            parts,
        )
    )
    assert staying(program, lambda run: ports[run.segment]) == {"h", "y"}


def test_tensors_stay_on_the_device_and_come_back_when_wanted(
    tmp_path: Path, device: Callable[[Path], Session]
) -> None:
    first = device(model(tmp_path, "first", "Neg", ["x"], ["h", "k"]))
    second = device(model(tmp_path, "second", "Add", ["h", "x"], ["y"]))
    made = first.work({"x": X, "other": X}, stays={"h", "nothing"})
    assert made.took_s > 0
    assert made.staged.keys() == {"h"}
    assert made.staged["h"].shape == (2, 3)
    np.testing.assert_array_equal(made.arrays["k"], -X)
    again = second.work({"x": 3 * X}, made.staged)
    assert not again.staged
    np.testing.assert_array_equal(again.arrays["y"], 2 * X)
    np.testing.assert_array_equal(made.staged["h"].host(), -X)


def test_a_session_without_the_device_takes_what_another_left_there(
    tmp_path: Path, device: Callable[[Path], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = device(model(tmp_path, "first", "Neg", ["x"], ["h"]))
    monkeypatch.delitem(sessions._DEVICES, CPU)
    second = open_session(model(tmp_path, "second", "Add", ["h", "x"], ["y"]))
    assert (first.device, second.device) == ("cpu", None)
    made = second.work({"x": 3 * X}, first.work({"x": X}, stays={"h"}).staged, stays={"y"})
    np.testing.assert_array_equal(made.arrays["y"], 2 * X)
    assert not made.staged


def test_whole_numbers_stay_where_the_host_can_look_at_them(
    tmp_path: Path, device: Callable[[Path], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    staged: list[Array] = []
    copied = sessions.to_device

    def noted(array: Array, where: str) -> onnxruntime.OrtValue:
        staged.append(array)
        return copied(array, where)

    monkeypatch.setattr(sessions, "to_device", noted)
    found = device(model(tmp_path, "picked", "Gather", ["x", "ids"], ["y"])).work(
        {"x": X, "ids": np.array([1])}
    )
    np.testing.assert_array_equal(found.arrays["y"], X[[1]])
    assert [each.dtype for each in staged] == [np.float32]


def test_whole_numbers_come_back_even_if_they_may_stay(
    tmp_path: Path, device: Callable[[Path], Session]
) -> None:
    made = device(model(tmp_path, "sizes", "Shape", ["x"], ["ids"])).work({"x": X}, stays={"ids"})
    assert not made.staged
    assert made.arrays["ids"].tolist() == [2, 3]


def test_a_number_alone_stays_one(tmp_path: Path, device: Callable[[Path], Session]) -> None:
    file = model(tmp_path, "first", "Neg", ["x"], ["h"])
    assert device(file).work({"x": np.array(3.0, np.float32)}).arrays["h"].shape == ()


@pytest.mark.parametrize(
    ("given", "why"), [({}, "first.onnx: no input tensor 'x'"), ({"x": X.astype(bool)}, "first.onnx: ")]
)
def test_what_does_not_fit_is_the_requests_fault(
    tmp_path: Path, device: Callable[[Path], Session], given: Mapping[str, Array], why: str
) -> None:
    with pytest.raises(ModelError, match=why):
        device(model(tmp_path, "first", "Neg", ["x"], ["h"])).work(given)


def test_an_attempt_leaves_on_the_device_what_the_next_segment_takes(
    tmp_path: Path, device: Callable[[Path], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the request goes there, and only the answer and what a client wants besides come back."""
    names = ("first", "second", "third")
    first, second, third = (Run(segment=name) for name in names)
    held = {
        first: device(model(tmp_path, "first", "Neg", ["x"], ["h"])),
        second: device(model(tmp_path, "second", "Neg", ["h"], ["i"])),
        third: device(model(tmp_path, "third", "Sub", ["i", "h"], ["y"])),
    }
    moved: list[tuple[str, Any]] = []
    copied, host = sessions.to_device, sessions.Staged.host

    def there(array: Array, where: str) -> onnxruntime.OrtValue:
        moved.append(("there", array.shape))
        return copied(array, where)

    def back(self: sessions.Staged) -> Array:
        moved.append(("back", self.shape))
        return host(self)

    monkeypatch.setattr(sessions, "to_device", there)
    monkeypatch.setattr(sessions.Staged, "host", back)
    shapes: list[object] = []
    attempt = Attempt(
        board=A,
        turns=turns_in(Program(steps=(first, second, third)), held),
        sessions=held,
        books={},
        header=Header(kind=Kind.TENSORS, attempt=bytes(16)),
        inbox=Inbox(frozenset(), frozenset()),
        deadline_s=0.0,
        send=lambda *_: None,
        alone=threading.Lock(),
        on_run=lambda run, found, _took_s: shapes.append((run.segment, found)),
        on_exchange=lambda *_: None,
        spare=Spare(),
        notes=None,
    )
    made = attempt.play({"x": X}, ["y", "i"])
    np.testing.assert_array_equal(made["y"], 2 * X)
    np.testing.assert_array_equal(made["i"], X)
    assert moved == [("there", (2, 3)), ("back", (2, 3)), ("back", (2, 3))]
    assert shapes == [
        ("first", {"x": (2, 3)}),
        ("second", {"h": (2, 3)}),
        ("third", {"i": (2, 3), "h": (2, 3)}),
    ]
    assert attempt.staged.keys() == {"i"}, "what nobody needs any more is let go"
