"""Records to JSON and back: what is written is read again, and nothing else is."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Literal, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import encoding
from shoal.encoding import Json, from_json, to_json
from shoal.errors import WireError
from shoal.manifest import Manifest
from shoal.messages import Alternative, Desired, Message, Presence, Telemetry
from shoal.program import Exchange, Lane, Plan, Program, Run
from shoal.records import Address, Profile, TensorSpec
from tests import build

RECORDS = (*typing.get_args(Message), Manifest)
each_record = pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)

Path = tuple[str | int, ...]

any_json = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(min_value=10**400, max_value=10**401),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from(["recv", "send", "online", "measured", "0" * 64]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()


def conforms(value: object, kind: Any) -> bool:
    """Say whether `value` is of the type `kind`, all the way down and no less strictly than mypy."""
    if isinstance(kind, typing.NewType):
        return conforms(value, kind.__supertype__)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return type(value) is kind and all(
            conforms(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(kind)
        )
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments and isinstance(value, str)
    if origin in (Union, types.UnionType):
        return any(conforms(value, each) for each in arguments)
    if origin is tuple:
        return type(value) is tuple and all(conforms(each, arguments[0]) for each in value)
    if origin is not None and issubclass(origin, Mapping):
        return type(value) is dict and all(
            conforms(k, arguments[0]) and conforms(v, arguments[1]) for k, v in value.items()
        )
    if isinstance(kind, type) and issubclass(kind, Enum):
        return isinstance(value, kind)
    return type(value) is kind and (not isinstance(value, float) or math.isfinite(value))


def places(value: Json, at: Path = ()) -> Iterator[tuple[Path, Json]]:
    """Yield every value inside a JSON value, with the way to it."""
    yield at, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*at, index))


def with_value(value: Any, at: Path, new: object) -> Any:
    """Return a copy of a JSON value with another value in one place."""
    if not at:
        return new
    if isinstance(value, dict):
        return {k: with_value(v, at[1:], new) if k == at[0] else v for k, v in value.items()}
    return [with_value(v, at[1:], new) if i == at[0] else v for i, v in enumerate(value)]


def written(at: Path) -> str:
    return "here" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in at)


def read(kind: type[object], text: bytes) -> object:
    """Return the record, or the WireError; nothing else may be raised."""
    try:
        return from_json(kind, text, "here")
    except WireError as error:
        return error


def refusal(kind: type, text: bytes) -> str:
    with pytest.raises(WireError) as caught:
        from_json(kind, text, "here")
    return str(caught.value)


# --- round trip -----------------------------------------------------------------------------------


@each_record
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_what_is_written_is_read_again(kind: type, data: st.DataObject) -> None:
    record = data.draw(build.any_of(kind))
    back = read(kind, to_json(record))
    assert back == record
    assert conforms(back, kind)


def test_equal_records_give_equal_bytes() -> None:
    one = Desired(
        coordinator=1,
        version=1,
        bundle=None,
        peers={build.A: build.address(1), build.B: build.address(2)},
        plans=(),
        committed=0,
        proving=0,
        ahead=(),
        precisions=(),
    )
    other = dataclasses.replace(one, peers={build.B: build.address(2), build.A: build.address(1)})
    assert one == other
    assert to_json(one) == to_json(other)


def test_json_is_compact_and_has_the_fields_as_keys() -> None:
    assert to_json(Presence(incarnation=3, state="left")) == b'{"incarnation":3,"state":"left"}'


def test_an_enum_is_its_value() -> None:
    text = to_json(build.profile(build.chain()))
    assert json.loads(text)["source"] == "measured"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_not_written(number: float) -> None:
    told = Alternative(
        strategy="local", boards=(), latency_s=number, throughput_per_s=1.0, note="", staging_s=0.0
    )
    with pytest.raises(ValueError, match="JSON"):
        to_json(told)


# --- strictness -----------------------------------------------------------------------------------


@each_record
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_wrong_type_is_refused_with_the_way_to_it(kind: type, data: st.DataObject) -> None:
    body = json.loads(to_json(data.draw(build.any_of(kind))))
    leaves = [at for at, value in places(body) if at and not isinstance(value, dict | list)]
    at = data.draw(st.sampled_from(leaves))
    assert written(at) in refusal(kind, dumps(with_value(body, at, {"?": 1})))


@each_record
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_an_unknown_or_a_missing_field_is_refused(kind: type, data: st.DataObject) -> None:
    body = json.loads(to_json(data.draw(build.any_of(kind))))
    field = data.draw(st.sampled_from(sorted(body)))
    assert field in refusal(kind, dumps({k: v for k, v in body.items() if k != field}))
    assert "surprise" in refusal(kind, dumps({**body, "surprise": 1}))


@each_record
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_anything_in_any_place_gives_a_whole_record_or_a_wire_error(kind: type, data: st.DataObject) -> None:
    body = json.loads(to_json(data.draw(build.any_of(kind))))
    at, _ = data.draw(st.sampled_from(list(places(body))))
    text = dumps(with_value(body, at, data.draw(any_json)))
    back = read(kind, text)
    assert str(back).startswith("here") if isinstance(back, WireError) else conforms(back, kind)


@each_record
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_bytes_give_a_record_or_a_wire_error(kind: type, data: st.DataObject) -> None:
    whole = to_json(data.draw(build.any_of(kind)))
    start, stop = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole)))
    text = whole[:start] + data.draw(st.binary(max_size=8)) + whole[stop:]
    back = read(kind, text)
    assert str(back).startswith("here") if isinstance(back, WireError) else conforms(back, kind)


@pytest.mark.parametrize("opening", [b"[", b'{"incarnation":', b'{"a":['])
def test_deep_nesting_is_a_wire_error_at_every_depth(opening: bytes) -> None:
    closing = {b"[": b"]", b'{"incarnation":': b"}", b'{"a":[': b"]}"}[opening]
    for depth in (1, 2, 100, *range(850, 1050), 100_000):
        text = opening * depth + b"1" + closing * depth
        with pytest.raises(WireError):
            from_json(Presence, text, "here")


PRESENCE = {"incarnation": 1, "state": "online"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"incarnation": True}, "here.incarnation: expected int, got true"),
        ({"incarnation": 1.0}, "here.incarnation: expected int, got 1.0"),
        ({"incarnation": "1"}, 'here.incarnation: expected int, got "1"'),
        ({"incarnation": None}, "here.incarnation: expected int, got null"),
        ({"state": "gone"}, 'here.state: expected one of ["online", "left", "lost"], got "gone"'),
        ({"state": ["online"]}, 'got ["online"]'),
    ],
)
def test_refusals_name_field_expected_and_got(change: dict[str, object], words: str) -> None:
    assert words in refusal(Presence, dumps({**PRESENCE, **change})).replace("'", '"')


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(word: str) -> None:
    report = build.telemetry(latency_median_s=0.5)
    text = to_json(report).replace(b"0.5", word.encode())
    refusal(Telemetry, text)
    body = json.loads(text)  # which is lenient
    with pytest.raises(WireError, match=r"here\.latency_median_s: expected a finite number"):
        encoding.build(Telemetry, body, "here")


@pytest.mark.parametrize("number", ["1" + "0" * 400, "9" * 5000, "-" + "9" * 5000])
def test_numbers_too_large_for_a_float_are_refused(number: str) -> None:
    text = to_json(build.profile(build.chain())).replace(b'"slowdown":1.0', b'"slowdown":' + number.encode())
    assert len(refusal(Profile, text)) < 500


def test_a_whole_number_is_a_number() -> None:
    text = to_json(build.profile(build.chain())).replace(b'"slowdown":1.0', b'"slowdown":2')
    assert from_json(Profile, text, "here").slowdown == 2.0


def test_a_true_is_no_number() -> None:
    text = to_json(build.profile(build.chain())).replace(b'"slowdown":1.0', b'"slowdown":true')
    assert "here.slowdown: expected a number, got true" in refusal(Profile, text)


def test_the_values_of_a_record_are_checked_by_the_record() -> None:
    body = json.loads(to_json(build.address()))
    assert "ports 1 to 65535, got 0" in refusal(Address, dumps({**body, "data_port": 0}))


def test_a_size_is_a_whole_number_or_a_name() -> None:
    def shape(*dims: object) -> bytes:
        return dumps({"name": "x", "dtype": "float32", "shape": dims})

    assert from_json(TensorSpec, shape(1, "n"), "here").shape == (1, "n")
    for dim in (1.0, True, None, [1]):
        assert "here.shape[1]: expected int or str" in refusal(TensorSpec, shape(1, dim))


def test_members_of_a_union_are_told_apart_by_their_fields() -> None:
    steps = (Run(segment="whole"), Exchange(kind="send", tag=1, tensors=("h",), peer=build.B))
    program = Program(steps=steps)
    assert from_json(Program, to_json(program), "here") == program
    both = {"segment": "whole", "kind": "send", "tag": 1, "tensors": ["h"], "peer": "b"}
    assert "here.steps[0]: expected Run or Exchange" in refusal(Program, dumps({"steps": [both]}))
    assert "here.steps[0]: expected Run or Exchange" in refusal(Program, dumps({"steps": [{}]}))
    wrong = {"kind": "send", "tag": "1", "tensors": ["h"], "peer": "b"}
    assert "here.steps[0].tag: expected int" in refusal(Program, dumps({"steps": [wrong]}))


def test_a_fault_deep_inside_is_named_with_its_whole_path() -> None:
    body = json.loads(to_json(build.plan()))
    body["lanes"][0]["programs"]["a"]["steps"][0]["segment"] = 7
    assert "here.lanes[0].programs.a.steps[0].segment: expected str, got 7" in refusal(Plan, dumps(body))


def test_null_is_only_taken_where_it_may_stand() -> None:
    desired = Desired(
        coordinator=1,
        version=1,
        bundle=None,
        peers={},
        plans=(),
        committed=0,
        proving=0,
        ahead=(),
        precisions=(),
    )
    body = json.loads(to_json(desired))
    assert from_json(Desired, dumps(body), "here") == desired
    assert "here.plans: expected a list, got null" in refusal(Desired, dumps({**body, "plans": None}))
    assert "here.peers: expected an object, got null" in refusal(Desired, dumps({**body, "peers": None}))


def test_errors_stay_short_however_long_the_value() -> None:
    assert len(refusal(Presence, dumps({**PRESENCE, "incarnation": "x" * 100_000}))) < 300
    assert len(refusal(Presence, b"x" * 100_000)) < 300


def test_no_record_of_ours_has_a_type_that_cannot_be_read() -> None:
    for kind in (*RECORDS, Lane, Program):
        assert refusal(kind, b"[]").startswith("here: expected an object")
