"""Ranges of weights: the ONNX file that declares them, and the bytes that are theirs."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from shoal.errors import ModelError
from shoal.exporter.weights import refer
from shoal.manifest import Segment, Slice
from shoal.onnxfile import Place, place_weights, weight_dims
from shoal.parts import cut_piece, is_piece, pieces, range_of, write_part
from shoal.program import RANGE
from shoal.records import Array, Sha256
from shoal.session import open_session
from shoal.store import Store
from tests import build


def sha256(content: bytes) -> Sha256:
    return Sha256(hashlib.sha256(content).hexdigest())


def product(folder: Path, weight: Array, axis: int, outer: int, units: int) -> Segment:
    """Return a segment that multiplies with a weight of which a board holds a range, its files in a store."""
    store = Store(folder)
    blob = store.put(np.ascontiguousarray(weight).tobytes())
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=weight.shape)
    refer(tensor, blob)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content = weight.reshape(outer, units, -1)
    one = Slice(
        tensor="w",
        blob=blob,
        axis=axis,
        outer=outer,
        units=units,
        unit_bytes=content.shape[2] * 4,
        sha256s=tuple(
            Sha256(hashlib.sha256(content[:, unit].tobytes()).hexdigest()) for unit in range(units)
        ),
    )
    return Segment(
        name="s",
        model=store.put(model.SerializeToString()),
        weights=(blob,),
        inputs=(),
        outputs=(),
        kind="k",
        flops=1,
        work_bytes=0,
        units=units,
        slices=(one,),
    )


@settings(deadline=None)  # opens a session each time
@given(units=st.integers(1, 6), inner=st.integers(1, 3), part=st.tuples(st.integers(0, 5), st.integers(1, 6)))
def test_a_part_multiplies_with_its_columns_only(
    units: int, inner: int, part: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    start, stop = min(part[0], units - 1), min(max(part), units)
    if start >= stop:
        return
    folder = tmp_path_factory.mktemp("part")
    weight = np.random.default_rng(units).standard_normal((4, units * inner)).astype(np.float32)
    segment = product(folder, weight, 1, 4, units)
    session = open_session(Store(folder).model_part(segment, (start, stop)))
    x = np.ones((2, 4), np.float32)
    got = session.run({"x": x})["y"]
    assert np.allclose(got, x @ weight[:, start * inner : stop * inner])


def test_rows_are_read_where_the_whole_weight_lies(tmp_path: Path) -> None:
    weight = np.arange(48, dtype=np.float32).reshape(12, 4)
    segment = product(tmp_path, weight, 0, 1, 6)
    before = set((tmp_path / "blobs").iterdir())
    session = open_session(Store(tmp_path).model_part(segment, (2, 5)))
    assert np.array_equal(session.run({"x": np.ones((1, 6), np.float32)})["y"], weight[4:10].sum(0)[None])
    assert set((tmp_path / "blobs").iterdir()) == before, "a range of rows is a range of bytes"


def test_larger_units_cover_the_part(tmp_path: Path) -> None:
    segment = product(tmp_path, np.zeros((4, 6), np.float32), 1, 4, 2)
    grouped = replace(segment, units=6)
    assert [
        (p.start, p.stop) for part in ((0, 3), (2, 4), (3, 6), (5, 6)) for p in pieces(grouped, part)
    ] == [
        (0, 1),
        (0, 2),
        (1, 2),
        (1, 2),
    ]
    assert range_of(grouped, (2, 4))[RANGE].tolist() == [2, 4, 6]
    assert range_of(grouped, ()) == {}


def test_a_piece_is_known_by_the_digests_of_its_units(tmp_path: Path) -> None:
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    segment = product(tmp_path, weight, 1, 4, 3)
    piece = pieces(segment, (1, 3))[0]
    content = b"".join(cut_piece(tmp_path / "blobs" / segment.weights[0].sha256, piece))
    assert content == weight[:, 2:].tobytes()
    file = tmp_path / "piece"
    file.write_bytes(content)
    assert is_piece(file, piece)
    for spoilt in (content[:-1], content + b"x", b"\xff" + content[1:], content[:-1] + b"\xff"):
        file.write_bytes(spoilt)
        assert not is_piece(file, piece)


def model_with(names: list[str], extra: bytes = b"") -> bytes:
    model = onnx.ModelProto(ir_version=8, producer_name="p" * 200)
    for name in names:
        tensor = model.graph.initializer.add(name=name, data_type=1, dims=[300, 2])
        refer(tensor, build.blob(len(name) + 1))
    model.graph.node.append(helper.make_node("Add", ["a", "b"], ["c"], doc_string="d" * 300))
    return bytes(model.SerializeToString()) + extra


def test_only_the_named_weights_change() -> None:
    content = model_with(["a", "b"])
    place = Place(dims=(7, 1 << 40), location="blobs/x", offset=12, length=34)
    changed = onnx.ModelProto.FromString(place_weights(content, {"b": place}))
    before = onnx.ModelProto.FromString(content)
    assert changed.graph.initializer[0] == before.graph.initializer[0]
    one = changed.graph.initializer[1]
    assert list(one.dims) == [7, 1 << 40]
    assert {e.key: e.value for e in one.external_data} == {
        "location": "blobs/x",
        "offset": "12",
        "length": "34",
    }
    one.CopyFrom(before.graph.initializer[1])
    assert changed == before
    assert weight_dims(content) == {"a": (300, 2), "b": (300, 2)}


def test_a_weight_that_is_not_there_is_named() -> None:
    place = Place(dims=(1,), location="x", offset=0, length=4)
    with pytest.raises(ModelError, match=r"expected weights \['z'\]"):
        place_weights(model_with(["a"]), {"z": place})
    inline = onnx.ModelProto()
    inline.graph.initializer.add(name="a", data_type=1, dims=[1], raw_data=bytes(4))
    with pytest.raises(ModelError, match="weight a: expected its data in another file"):
        place_weights(inline.SerializeToString(), {"a": place})


@given(st.binary(max_size=60), st.integers(0, 400))
def test_bytes_that_are_no_model_are_refused(noise: bytes, length: int) -> None:
    for content in (noise, model_with(["a"])[:length]):
        try:
            weight_dims(content)
        except ModelError:
            continue


def test_a_part_needs_its_weights(tmp_path: Path) -> None:
    segment = product(tmp_path, np.zeros((4, 6), np.float32), 1, 4, 3)
    model = Store(tmp_path).path(segment.model.sha256)
    with pytest.raises(FileNotFoundError):
        write_part(model, segment, (0, 1), tmp_path / "elsewhere", tmp_path / "out.onnx")
