"""The table of topics, and payloads that are none of ours."""

import dataclasses
import itertools
import json
import typing
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import wire
from shoal.errors import WireError
from shoal.messages import Birth, Coordinator, Deployment, Desired, Heartbeat, Message, Presence
from shoal.program import Lane, Plan, Program, Run
from shoal.records import BoardId, Profile
from shoal.wire import MAX_PAYLOAD_BYTES, WIRE, Envelope, Route, Sender
from tests import build
from tests.unit.test_encoding import any_json, conforms

each_row = pytest.mark.parametrize("route", WIRE, ids=lambda route: route.message.__name__)

HEARTBEAT_TOPIC = "shoal/v1/home/board/a/heartbeat"
HEARTBEAT = {"incarnation": 1, "sequence": 2, "in_flight": 0}


def topic_of(route: Route) -> str:
    return wire.topic("home", route.message, build.A if "{board}" in route.path else None)


def payload(**body: object) -> bytes:
    return json.dumps(body).encode()


def decoded(topic: str, content: bytes) -> Envelope | WireError:
    try:
        return wire.decode(topic, content, retained=False)
    except WireError as error:
        return error


def refusal(topic: str, content: bytes) -> str:
    with pytest.raises(WireError) as caught:
        wire.decode(topic, content, retained=False)
    return str(caught.value)


# --- the table ------------------------------------------------------------------------------------


def test_every_message_has_exactly_one_row() -> None:
    rows = [route.message for route in WIRE]
    assert sorted(rows, key=str) == sorted(typing.get_args(Message), key=str)


def test_no_two_topics_can_match_one_string() -> None:
    def may_match(one: str, other: str) -> bool:
        pairs = list(itertools.zip_longest(one.split("/"), other.split("/")))
        return all(p is not None and q is not None and (p == q or "{" in p + q) for p, q in pairs)

    for one, other in itertools.combinations(WIRE, 2):
        assert not may_match(one.path, other.path), f"{one.path} and {other.path}"


@each_row
def test_a_topic_leads_back_to_its_row(route: Route) -> None:
    envelope = wire.decode(topic_of(route), b"", retained=True)
    assert envelope.route is route
    assert wire.route_of(route.message) is route
    assert envelope.board == (build.A if "{board}" in route.path else None)


def test_the_topics_that_others_rely_on() -> None:
    assert wire.topic("home", Heartbeat, build.A) == HEARTBEAT_TOPIC
    assert wire.topic("home", Plan) == "shoal/v1/home/plan"
    assert wire.every("home") == "shoal/v1/home/#"


@each_row
def test_a_board_is_named_exactly_where_the_topic_has_one(route: Route) -> None:
    with pytest.raises(ValueError, match=route.message.__name__):
        wire.topic("home", route.message, None if "{board}" in route.path else build.A)


def test_only_the_coordinator_says_what_is_desired_and_only_heartbeats_and_the_like_are_not_kept() -> None:
    sender: Mapping[type, Sender] = {route.message: route.sender for route in WIRE}
    assert [m for m, s in sender.items() if s is Sender.OPERATOR] == [Deployment]
    assert sender[Desired] is sender[Plan] is sender[Coordinator] is Sender.COORDINATOR
    assert sender[Birth] is sender[Profile] is sender[Presence] is Sender.AGENT
    kept = {route.message.__name__ for route in WIRE if route.retain}
    assert {route.message.__name__ for route in WIRE} - kept == {
        "Heartbeat",
        "Telemetry",
        "Vitals",
        "Airtime",
        "Alarm",
        "Call",
    }
    assert all(route.qos == 1 for route in WIRE if route.retain)


# --- payloads -------------------------------------------------------------------------------------


@each_row
@given(data=st.data(), retained=st.booleans())
@settings(max_examples=10, deadline=None)
def test_what_is_encoded_is_decoded(route: Route, data: st.DataObject, retained: bool) -> None:
    message = data.draw(build.any_of(typing.cast(type, route.message)))
    envelope = wire.decode(topic_of(route), wire.encode(message), retained=retained)
    assert envelope.message == message
    assert (envelope.route, envelope.retained) == (route, retained)


@each_row
@given(content=st.one_of(st.binary(max_size=40), any_json.map(lambda v: payload(v=1, m=v))))
@settings(max_examples=25, deadline=None)
def test_any_payload_gives_a_message_or_a_wire_error(route: Route, content: bytes) -> None:
    found = decoded(topic_of(route), content)
    if isinstance(found, WireError):
        assert str(found).startswith(topic_of(route))
    else:
        assert conforms(found.message, route.message) if content else found.message is None


_levels = st.one_of(
    st.sampled_from(["shoal", "v1", "v2", "home", "board", "a", "birth", "plan", "{board}", "+", "#", ""]),
    st.text(max_size=4),
)


@given(name=st.lists(_levels, max_size=7).map("/".join), content=st.binary(max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_topic_gives_a_message_or_a_wire_error(name: str, content: bytes) -> None:
    found = decoded(name, content)
    if isinstance(found, WireError):
        assert len(str(found)) < 500
    else:
        assert found.message is None
        assert content == b""
        assert name.startswith("shoal/v1/")


@pytest.mark.parametrize(
    "name",
    [
        "shoal/v1/home",
        "shoal/v1/home/",
        "shoal/v2/home/plan",
        "shoal/v1/home/plan/",
        "shoal/v1/home/board/a",
        "shoal/v1/home/board/a/birth/x",
        "shoal/v1/home/board//birth",
        "shoal/v1/home/board/../birth",
        "shoal/v1/home/board/{board}/birth",
        "shoal/v1/home/board/" + "a" * 65 + "/birth",
        "Shoal/v1/home/plan",
        "",
    ],
)
def test_a_topic_that_is_not_of_the_table_is_refused(name: str) -> None:
    assert name[:20] in refusal(name, b"")


@pytest.mark.parametrize("version", [2, 0, "1", None, 1.0, True, [1]])
def test_another_version_is_named(version: object) -> None:
    words = refusal(HEARTBEAT_TOPIC, payload(v=version, m=HEARTBEAT))
    assert f"expected protocol version 1, got {version!r}" in words


def test_a_payload_without_a_version_is_refused() -> None:
    assert "expected protocol version 1, got None" in refusal(HEARTBEAT_TOPIC, payload(m=HEARTBEAT))
    assert "expected protocol version 1, got None" in refusal(HEARTBEAT_TOPIC, b"[1]")


def test_an_envelope_has_two_fields() -> None:
    assert "['v']" in refusal(HEARTBEAT_TOPIC, payload(v=1))
    assert "['extra', 'm', 'v']" in refusal(HEARTBEAT_TOPIC, payload(v=1, m=HEARTBEAT, extra=1))


def test_a_fault_names_topic_and_field() -> None:
    words = refusal(HEARTBEAT_TOPIC, payload(v=1, m={**HEARTBEAT, "sequence": "2"}))
    assert words == f'{HEARTBEAT_TOPIC}.sequence: expected int, got "2"'


def test_a_message_on_the_topic_of_another_is_refused() -> None:
    refusal(HEARTBEAT_TOPIC, wire.encode(build.presence("online")))


def test_an_empty_payload_clears() -> None:
    envelope = wire.decode("shoal/v1/home/deployment", b"", retained=False)
    assert (envelope.message, envelope.route.message) == (None, Deployment)


def test_too_large_a_payload_is_neither_sent_nor_read() -> None:
    spare = b" " * (MAX_PAYLOAD_BYTES - len(payload(v=1, m=HEARTBEAT)))
    most = payload(v=1, m=HEARTBEAT) + spare
    assert wire.decode(HEARTBEAT_TOPIC, most, retained=False).message == Heartbeat(**HEARTBEAT)
    assert f"at most {MAX_PAYLOAD_BYTES} bytes" in refusal(HEARTBEAT_TOPIC, most + b" ")
    coordinator = Coordinator(incarnation=1, state="online", url="x" * MAX_PAYLOAD_BYTES)
    with pytest.raises(ValueError, match=f"Coordinator: 10.* bytes, limit {MAX_PAYLOAD_BYTES}"):
        wire.encode(coordinator)


def test_a_payload_nested_deep_is_a_wire_error_at_every_depth() -> None:
    for depth in (*range(900, 1100), 100_000):
        nested = b"[" * depth + b"]" * depth
        for content in (nested, b'{"v":%s}' % nested, b'{"v":1,"m":%s}' % nested):
            refusal(HEARTBEAT_TOPIC, content)


def test_plans_for_many_boards_can_be_published() -> None:
    boards = [BoardId(f"board-{index:02}") for index in range(64)]
    program = Program(steps=tuple(Run(segment=f"s{index:02}") for index in range(48)))
    lane = Lane(programs=dict.fromkeys(boards, program), weight=1.0)
    addresses = {board: build.address_of(board) for board in boards}
    plan = dataclasses.replace(build.plan(1, boards[0]), lanes=(lane,), addresses=addresses)
    desired = Desired(
        coordinator=1,
        version=1,
        bundle=None,
        peers=addresses,
        plans=(plan, plan, plan),
        committed=1,
        proving=0,
        ahead=(),
        precisions=(),
    )
    assert (
        wire.decode("shoal/v1/home/board/a/desired", wire.encode(desired), retained=True).message == desired
    )
