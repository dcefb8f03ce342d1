"""The bodies of the Open Inference Protocol: what fits is read, what does not is named."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import oip
from shoal.errors import ModelError
from shoal.manifest import Manifest
from shoal.records import ITEM_BYTES, Array, TensorSpec
from tests import build
from tests.unit.test_encoding import any_json

INT8_VALUES = [1, -2, 3, 127, -128, 0]


def model(*inputs: tuple[str, str, tuple[int | str, ...]], outputs: tuple[str, ...] = ("y",)) -> Manifest:
    specs = tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape in inputs)
    made = tuple(TensorSpec(name=name, dtype="float32", shape=("n", 2)) for name in outputs)
    values: dict[str, Any] = {name: getattr(build.chain(), name) for name in Manifest.__dataclass_fields__}
    sizes = {dim: 2 for spec in (*specs, *made) for dim in spec.shape if isinstance(dim, str)}
    return Manifest(**{**values, "inputs": specs, "outputs": made, "sample_sizes": sizes})


ONE = model(("x", "float32", (2, 3)))
SIX = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def entry(**change: Any) -> dict[str, Any]:
    whole = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": SIX}
    return {key: value for key, value in {**whole, **change}.items() if value is not ...}


def body(*entries: Any, **fields: Any) -> bytes:
    return json.dumps({"inputs": list(entries), **fields}).encode()


def binary(*tails: bytes, **change: Any) -> tuple[bytes, str]:
    """Return a body with one input whose bytes follow the JSON, and the length of the JSON."""
    tail = b"".join(tails)
    given = {"data": ..., "parameters": {"binary_data_size": len(tail)}, **change}
    head = body(entry(**given))
    return head + tail, str(len(head))


def parse(content: bytes, json_length: str | None = None, manifest: Manifest = ONE) -> oip.Request:
    return oip.parse_request(content, json_length, manifest)


def refusal(content: bytes, json_length: str | None = None, manifest: Manifest = ONE) -> str:
    with pytest.raises(ModelError) as caught:
        oip.parse_request(content, json_length, manifest)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def one_of(dtype: str) -> Manifest:
    return model(("x", dtype, (6,)))


# --- what fits ------------------------------------------------------------------------------------


def test_data_may_be_flat_or_nested() -> None:
    for data in (SIX, [SIX[:3], SIX[3:]]):
        found = parse(body(entry(data=data))).inputs["x"]
        assert (found.dtype.name, found.shape) == ("float32", (2, 3))
        np.testing.assert_array_equal(found, [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_every_type_is_read_from_lists_and_from_bytes(dtype: str) -> None:
    values = {"b": [True, False] * 3, "u": [0, 1, 2, 3, 4, 255]}.get(np.dtype(dtype).kind, INT8_VALUES)
    want = np.array(values, dtype=dtype)
    word = {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64"}.get(dtype, dtype.upper())
    change = {"datatype": word, "shape": [6]}
    from_list = parse(body(entry(data=values, **change)), manifest=one_of(dtype)).inputs["x"]
    from_bytes = parse(*binary(want.tobytes(), **change), manifest=one_of(dtype)).inputs["x"]
    for found in (from_list, from_bytes):
        assert found.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found, want)


def test_whole_numbers_will_do_for_floats() -> None:
    assert parse(body(entry(data=[1, 2, 3, 4, 5, 6]))).inputs["x"].dtype == np.float32


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16"])
def test_the_largest_and_smallest_numbers_fit(dtype: str) -> None:
    limits = np.iinfo(dtype)
    values = [int(limits.min), int(limits.max)] * 3
    content = body(entry(data=values, datatype=dtype.upper(), shape=[6]))
    assert parse(content, manifest=one_of(dtype)).inputs["x"].tolist() == values


def test_the_largest_number_of_all_fits() -> None:
    content = body(entry(data=[(1 << 64) - 1] * 6, datatype="UINT64", shape=[6]))
    assert parse(content, manifest=one_of("uint64")).inputs["x"].tolist() == [(1 << 64) - 1] * 6


def test_identity_timeout_and_outputs_are_read() -> None:
    manifest = model(("x", "float32", (2, 3)), outputs=("y", "z"))
    plain = parse(body(entry()), manifest=manifest)
    assert (plain.id, plain.timeout_s) == ("", None)
    assert [(w.name, w.binary) for w in plain.outputs] == [("y", False), ("z", False)]
    asked = parse(
        body(
            entry(),
            id="42",
            parameters={"timeout": 2_500_000, "binary_data_output": True},
            outputs=[{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}],
        ),
        manifest=manifest,
    )
    assert (asked.id, asked.timeout_s) == ("42", 2.5)
    assert [(w.name, w.binary) for w in asked.outputs] == [("z", False), ("y", True)]


def test_what_others_add_to_the_protocol_is_passed_over() -> None:
    parse(body(entry(parameters={"shm": 1}), parameters={"priority": 3}, extension={"a": 1}))


def test_a_timeout_of_zero_is_none() -> None:
    assert parse(body(entry(), parameters={"timeout": 0})).timeout_s is None


def test_named_sizes_are_whatever_the_request_says() -> None:
    manifest = model(("ids", "int64", ("n", "t")), ("mask", "bool", ("n", "t")))
    ids = {"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": [7, 8, 9]}
    mask = {"name": "mask", "datatype": "BOOL", "shape": [1, 3], "data": [True, True, False]}
    for entries in ((ids, mask), (mask, ids)):
        found = parse(body(*entries), manifest=manifest).inputs
        assert found["ids"].shape == found["mask"].shape == (1, 3)


def test_binary_tensors_of_several_inputs_follow_in_the_order_of_the_request() -> None:
    manifest = model(("a", "int32", (2,)), ("b", "float64", (1,)))
    described = [
        {"name": "b", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}},
        {"name": "a", "datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": 8}},
    ]
    head = body(*described)
    tail = np.array([0.5]).tobytes() + np.array([3, 4], dtype=np.int32).tobytes()
    found = parse(head + tail, str(len(head)), manifest).inputs
    assert found["a"].tolist() == [3, 4]
    assert found["b"].tolist() == [0.5]


def test_lists_and_bytes_may_be_mixed() -> None:
    manifest = model(("a", "int32", (1,)), ("b", "int32", (1,)))
    head = body(
        {"name": "a", "datatype": "INT32", "shape": [1], "data": [7]},
        {"name": "b", "datatype": "INT32", "shape": [1], "parameters": {"binary_data_size": 4}},
    )
    found = parse(head + b"\x08\0\0\0", str(len(head)), manifest).inputs
    assert (found["a"].tolist(), found["b"].tolist()) == ([7], [8])


def test_json_alone_may_come_with_its_length() -> None:
    content = body(entry())
    assert parse(content, str(len(content))).inputs["x"].shape == (2, 3)


# --- what does not --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "z"}, "expected inputs named ['x'], got 'z'"),
        ({"name": ...}, "expected inputs named ['x'], got None"),
        ({"name": ["x"]}, "expected inputs named ['x'], got ['x']"),
        ({"datatype": "INT64"}, "input x: expected datatype FP32, got 'INT64'"),
        ({"datatype": ...}, "input x: expected datatype FP32, got None"),
        ({"shape": [3, 2]}, "input x: expected shape [2, 3], got [3, 2]"),
        ({"shape": [6]}, "input x: expected shape [2, 3], got [6]"),
        ({"shape": [2, 3, 1]}, "input x: expected shape [2, 3], got [2, 3, 1]"),
        ({"shape": [2.0, 3]}, "input x: expected shape [2, 3], got [2.0, 3]"),
        ({"shape": ["2", 3]}, "input x: expected shape [2, 3], got ['2', 3]"),
        ({"shape": "23"}, "input x: expected shape [2, 3], got '23'"),
        ({"shape": ...}, "input x: expected shape [2, 3], got None"),
        ({"data": ...}, "input x: expected data as a list, got None"),
        ({"data": "123456"}, "input x: expected data as a list, got '123456'"),
        ({"data": {"0": 1}}, "input x: expected data as a list"),
        ({"data": SIX[:5]}, "input x: expected 6 values for [2, 3]"),
        ({"data": [*SIX, 7.0]}, "input x: expected 6 values for [2, 3]"),
        ({"data": []}, "input x: expected 6 values for [2, 3]"),
        ({"data": [SIX[:3], SIX[3:5]]}, "input x: expected 6 values for [2, 3]"),
        ({"data": [1, 2, 3, 4, 5, "6"]}, "input x: expected float32 data"),
        ({"data": [1, 2, 3, 4, 5, None]}, "input x: expected float32 data"),
        ({"data": [True] * 6}, "input x: expected float32 data"),
        ({"data": [1, 2, 3, 4, 5, {"a": 1}]}, "input x: expected float32 data"),
        ({"data": [1, 2, 3, 4, 5, 1e300]}, "input x: a value does not fit float32"),
        ({"parameters": [1]}, "input x parameters: expected an object"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    assert words in refusal(body(entry(**change)))


@pytest.mark.parametrize("size", [True, False, 1.0, -1, None, "1"])
def test_sizes_are_whole_numbers(size: object) -> None:
    content = body(entry(shape=[size, 3], data=SIX[:3]))
    assert "input x: expected shape ['n', 3]" in refusal(content, manifest=model(("x", "float32", ("n", 3))))


@pytest.mark.parametrize("size", [1 << 40, 1 << 63, 10**30])
def test_absurd_sizes_are_refused(size: int) -> None:
    manifest = model(("x", "float32", ("n", 3)))
    assert "input x" in refusal(body(entry(shape=[size, 3])), manifest=manifest)
    refusal(*binary(bytes(24), shape=[size, 3]), manifest=manifest)
    huge = {"binary_data_size": 12 * size}
    refusal(*binary(bytes(24), shape=[size, 3], parameters=huge), manifest=manifest)


@pytest.mark.parametrize(
    ("dtype", "values", "words"),
    [
        ("int8", [1, 2, 3, 4, 5, 128], "a value does not fit int8"),
        ("int8", [1, 2, 3, 4, 5, -129], "a value does not fit int8"),
        ("uint8", [1, 2, 3, 4, 5, -1], "a value does not fit uint8"),
        ("uint64", [1, 2, 3, 4, 5, -1], "a value does not fit uint64"),
        ("int64", [1 << 63] * 6, "a value does not fit int64"),
        ("int64", [1, 2, 3, 4, 5, 1 << 63], "expected int64 data"),
        ("int64", [1, 2, 3, 4, -5, 1 << 63], "expected int64 data"),
        ("uint64", [1, 2, 3, 4, 5, 1 << 64], "expected uint64 data"),
        ("int64", [1, 2, 3, 4, 5, 6.0], "expected int64 data"),
        ("int64", [1, 2, 3, 4, 5, 6.5], "expected int64 data"),
        ("int32", [True] * 6, "expected int32 data"),
        ("bool", [1, 0, 1, 0, 1, 0], "expected bool data"),
        ("bool", [True, False, 1, 1, 1, 1], "expected bool data"),
        ("float16", [1, 2, 3, 4, 5, 65520], "a value does not fit float16"),
        ("float16", [1, 2, 3, 4, 5, -1e9], "a value does not fit float16"),
        ("float64", [1, 2, 3, 4, 5, 10**400], "expected float64 data"),
    ],
)
def test_values_that_do_not_fit_the_type_are_refused(dtype: str, values: list[object], words: str) -> None:
    change = {"datatype": oip.DATATYPES[dtype], "shape": [6]}
    assert f"input x: {words}" in refusal(body(entry(data=values, **change)), manifest=one_of(dtype))


def test_named_sizes_must_agree_wherever_they_occur() -> None:
    manifest = model(("ids", "int64", ("n", "t")), ("mask", "bool", ("n", "t")))
    ids = {"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": [7, 8, 9]}
    mask = {"name": "mask", "datatype": "BOOL", "shape": [1, 2], "data": [True, True]}
    assert "input mask: expected shape [1, 3], got [1, 2]" in refusal(body(ids, mask), manifest=manifest)
    assert "input ids: expected shape [1, 2], got [1, 3]" in refusal(body(mask, ids), manifest=manifest)
    bias = {"name": "bias", "datatype": "BOOL", "shape": [2, 3], "data": [True] * 6}
    manifest = model(("bias", "bool", ("t", "t")))
    assert "input bias: expected shape ['t', 't'], got [2, 3]" in refusal(body(bias), manifest=manifest)


def test_inputs_come_each_once() -> None:
    manifest = model(("x", "float32", (2, 3)), ("w", "float32", (2, 3)))
    assert "got no ['w']" in refusal(body(entry()), manifest=manifest)
    assert "got no ['w', 'x']" in refusal(body(), manifest=manifest)
    assert "input x comes twice" in refusal(body(entry(), entry()))


@pytest.mark.parametrize("inputs", [None, 1, "x", {"x": [1]}, [1], [[1]]])
def test_inputs_are_a_list_of_objects(inputs: object) -> None:
    assert "inputs" in refusal(json.dumps({"inputs": inputs}).encode())
    assert "inputs" in refusal(b"{}")


@pytest.mark.parametrize("declared", [23, 25, 0, -1, "24", 24.5, [24], {}])
def test_the_declared_size_must_be_that_of_the_shape(declared: object) -> None:
    words = refusal(*binary(bytes(24), parameters={"binary_data_size": declared}))
    assert "input x: expected 24 bytes of binary data for [2, 3]" in words


def test_all_bytes_must_be_there_and_none_more() -> None:
    whole = {"binary_data_size": 24}
    assert "got 24 declared and 20 there" in refusal(*binary(bytes(20), parameters=whole))
    assert "1 bytes follow the last binary tensor" in refusal(*binary(bytes(25), parameters=whole))
    content = body(entry())
    assert "2 bytes follow" in refusal(content + b"  ", str(len(content)))
    assert "expected 24 bytes of binary data" in refusal(body(entry(data=..., parameters=whole)))


def test_bytes_that_are_no_bool_are_refused() -> None:
    manifest = one_of("bool")
    change = {"datatype": "BOOL", "shape": [6]}
    assert parse(*binary(b"\0\1\0\1\1\0", **change), manifest=manifest).inputs["x"].tolist() == [
        0,
        1,
        0,
        1,
        1,
        0,
    ]
    assert "input x: expected bytes of 0 and 1" in refusal(
        *binary(b"\0\1\0\2\1\0", **change), manifest=manifest
    )


@pytest.mark.parametrize("length", ["", "-1", "1e3", "99999", "x", " 5", "9" * 5000])
def test_a_wrong_length_of_the_json_is_refused(length: str) -> None:
    assert oip.JSON_LENGTH in refusal(body(entry()), length)


def test_a_length_that_cuts_the_json_is_refused() -> None:
    content = body(entry())
    assert "expected JSON" in refusal(content, str(len(content) - 1))
    assert "expected JSON" in refusal(content, "0")


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xfe", b"[", b'{"inputs":', b"[" * 100_000])
def test_a_body_that_is_no_json_is_refused(content: bytes) -> None:
    assert "expected JSON" in refusal(content)


@pytest.mark.parametrize("content", [b"[]", b"1", b"null", b'"x"'])
def test_a_body_that_is_no_object_is_refused(content: bytes) -> None:
    assert "expected a JSON object" in refusal(content)


@pytest.mark.parametrize("timeout", [-1, 1.5, "1", True, [1], {}])
def test_a_timeout_is_whole_microseconds(timeout: object) -> None:
    assert "parameters.timeout: expected microseconds" in refusal(
        body(entry(), parameters={"timeout": timeout})
    )


def test_a_timeout_of_any_size_is_read_or_refused() -> None:
    found = parse(body(entry(), parameters={"timeout": 10**18}))
    assert found.timeout_s == pytest.approx(1e12)
    for timeout in (10**30, 10**400):
        assert "parameters.timeout" in refusal(body(entry(), parameters={"timeout": timeout}))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id": 7}, "id: expected text, got 7"),
        ({"parameters": [1]}, "parameters: expected an object"),
        ({"parameters": None}, "parameters: expected an object"),
        ({"outputs": {"name": "y"}}, "outputs: expected a list"),
        ({"outputs": ["y"]}, "outputs[0]: expected an object, got 'y'"),
        ({"outputs": [{"name": "x"}]}, "expected outputs named ['y'], got 'x'"),
        ({"outputs": [{}]}, "expected outputs named ['y'], got None"),
        ({"outputs": [{"name": "y", "parameters": 1}]}, "output y parameters: expected an object"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 5}}]}, "output y: the classification"),
    ],
)
def test_other_fields_that_do_not_fit_are_named(fields: dict[str, Any], words: str) -> None:
    assert words in refusal(body(entry(), **fields))


def test_nesting_at_any_depth_is_refused() -> None:
    for depth in (*range(900, 1020), 50_000):
        deep = b"[" * depth + b"]" * depth
        for where in (b"%s", b'{"inputs":%s}', b'{"id":%s}', b'{"inputs":[],"parameters":{"timeout":%s}}'):
            refusal(where % deep)
        content = body(entry(data="DEEP")).replace(b'"DEEP"', deep)
        refusal(content)


def tried(content: bytes, json_length: str | None, manifest: Manifest) -> oip.Request | None:
    try:
        return oip.parse_request(content, json_length, manifest)
    except ModelError:
        return None


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_value_in_any_place_gives_a_fitting_request_or_a_model_error(data: st.DataObject) -> None:
    manifest = model(("x", "float32", (2, 3)), ("ids", "int64", ("n",)))
    second = {"name": "ids", "datatype": "INT64", "shape": [2], "data": [1, 2]}
    whole: dict[str, Any] = {
        "inputs": [entry(), second],
        "id": "1",
        "parameters": {},
        "outputs": [{"name": "y"}],
    }
    inner = data.draw(st.sampled_from([whole, whole["inputs"][0], second, whole["outputs"][0]]))
    inner[data.draw(st.sampled_from([*inner, "parameters"]))] = data.draw(any_json)
    content = json.dumps(whole).encode()
    length = data.draw(st.one_of(st.none(), st.integers(-1, len(content) + 1).map(str), st.text(max_size=3)))
    found = tried(content, length, manifest)
    if found is not None:
        assert {name: a.dtype.name for name, a in found.inputs.items()} == {"x": "float32", "ids": "int64"}
        assert found.inputs["x"].shape == (2, 3)
        assert found.inputs["ids"].ndim == 1


@given(content=st.one_of(st.binary(max_size=60), any_json.map(lambda v: json.dumps(v).encode())))
@settings(max_examples=150, deadline=None)
def test_any_body_gives_a_model_error(content: bytes) -> None:
    refusal(content)


# --- answers --------------------------------------------------------------------------------------


def answer(asked: oip.Request, tensors: Mapping[str, Array], manifest: Manifest = ONE) -> Any:
    parts, length = oip.render_response(manifest, asked, tensors)
    assert length is None
    return json.loads(b"".join(parts))


def test_an_answer_in_json_says_all_about_its_tensors() -> None:
    asked = parse(body(entry(), id="7"))
    found = answer(asked, {"y": np.array([[0.5, -1.0]], dtype=np.float32)})
    assert found == {
        "model_name": "model",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -1.0]}],
    }


def test_an_answer_has_no_identity_unless_asked() -> None:
    assert "id" not in answer(parse(body(entry())), {"y": np.zeros((1, 2), dtype=np.float32)})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_json_cannot_say_is_null(dtype: str) -> None:
    values = np.array([math.nan, math.inf, -math.inf, 1.5], dtype=dtype)
    assert answer(parse(body(entry())), {"y": values})["outputs"][0]["data"] == [None, None, None, 1.5]


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_every_type_is_answered_exactly(dtype: str) -> None:
    values = np.array([0, 1, 1, 0], dtype=dtype)
    found = answer(parse(body(entry())), {"y": values})["outputs"][0]
    assert found["datatype"] == oip.DATATYPES[dtype]
    assert np.array(found["data"]).tolist() == values.tolist()
    assert isinstance(found["data"][0], bool) == (dtype == "bool")


def test_scalars_and_empty_tensors_are_answered() -> None:
    for values in (np.array(2.5, dtype=np.float32), np.zeros((2, 0), dtype=np.float32)):
        found = answer(parse(body(entry())), {"y": values})["outputs"][0]
        assert found["shape"] == list(values.shape)
        assert found["data"] == values.reshape(-1).tolist()


def test_only_the_outputs_asked_for_are_answered_in_their_order() -> None:
    manifest = model(("x", "float32", (2, 3)), outputs=("y", "z"))
    asked = parse(body(entry(), outputs=[{"name": "z"}, {"name": "y"}]), manifest=manifest)
    tensors = {"y": np.array([1.0], dtype=np.float32), "z": np.array([2.0], dtype=np.float32)}
    assert [o["data"] for o in answer(asked, tensors, manifest)["outputs"]] == [[2.0], [1.0]]


def test_binary_and_json_outputs_may_be_mixed() -> None:
    manifest = model(("x", "float32", (2, 3)), outputs=("y", "z"))
    outputs = [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}]
    asked = parse(body(entry(), outputs=outputs), manifest=manifest)
    tensors = {"y": np.array([1.0, 2.0], dtype=np.float32), "z": np.array([3.0], dtype=np.float32)}
    parts, length = oip.render_response(manifest, asked, tensors)
    content = b"".join(parts)
    assert length is not None
    first, second = json.loads(content[:length])["outputs"]
    assert first["parameters"] == {"binary_data_size": 8}
    assert second["data"] == [3.0]
    assert content[length:] == tensors["y"].tobytes()


def test_tensors_that_do_not_lie_in_one_piece_are_answered_in_order() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert answer(parse(body(entry())), {"y": values})["outputs"][0]["data"] == [0, 3, 1, 4, 2, 5]


arrays = st.tuples(
    st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 99)
).map(lambda t: (np.random.default_rng(t[2]).standard_normal(t[1]) > 0).astype(t[0]))


@given(given_=st.dictionaries(st.text(min_size=1, max_size=4), arrays, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_request_of_ours_is_read_by_us(given_: dict[str, Array]) -> None:
    manifest = model(*((name, array.dtype.name, array.shape) for name, array in given_.items()))
    content, length = oip.render_request(given_)
    found = oip.parse_request(content, str(length), manifest)
    assert found.inputs.keys() == given_.keys()
    for name, array in given_.items():
        assert found.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(found.inputs[name], array)
    assert all(wanted.binary for wanted in found.outputs)
    parts, json_length = oip.render_response(manifest, found, {"y": next(iter(given_.values()))})
    assert json_length is not None
    back = oip.parse_response(b"".join(parts), json_length)
    np.testing.assert_array_equal(back["y"], next(iter(given_.values())))


def test_numbers_of_the_other_byte_order_are_sent_in_ours() -> None:
    array = np.array([1, 2, 3], dtype=">i4")
    content, length = oip.render_request({"x": array})
    found = oip.parse_request(content, str(length), model(("x", "int32", (3,))))
    assert found.inputs["x"].tolist() == [1, 2, 3]


def test_metadata_has_minus_one_for_sizes_that_a_request_chooses() -> None:
    found: Any = oip.model_metadata(model(("ids", "int64", ("n", 5))))
    assert found["inputs"] == [{"name": "ids", "datatype": "INT64", "shape": [-1, 5]}]
    assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
    assert found["name"] == "model"


# --- how long a client waits ------------------------------------------------------------------------


def test_how_long_a_client_waits_is_read_without_its_tensors() -> None:
    asked = json.dumps({"parameters": {"timeout": 2_500_000, "deadline_ms": 40}}).encode()
    found = oip.times(asked, None, None)
    assert (found.timeout_s, found.deadline_s) == (2.5, 0.04)
    assert oip.times(asked, None, "7.5").deadline_s == 0.0075, "the header counts"
    assert oip.times(b"{}", None, "0").deadline_s == 0.0
    for nothing in (b"", b"[]", b'{"parameters": []}', b'"timeout"', b"{" * 100, b'"deadline_ms"'):
        found = oip.times(nothing, None, None)
        assert (found.timeout_s, found.deadline_s) == (None, None)


@pytest.mark.parametrize("given", ["", "soon", "-1", "nan", "inf", "1e999"])
def test_a_deadline_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ModelError, match="deadline_ms: expected milliseconds of 0 or more, got"):
        oip.times(b"{}", None, given)


@pytest.mark.parametrize("given", [-1, True, [1], {}])
def test_a_deadline_in_the_parameters_is_a_number_too(given: object) -> None:
    with pytest.raises(ModelError, match="deadline_ms: expected milliseconds"):
        oip.times(json.dumps({"parameters": {"deadline_ms": given}}).encode(), None, None)
