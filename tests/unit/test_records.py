"""Records refuse what cannot be: names, digests, addresses, programs, plans and manifests."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.encoding import to_json
from shoal.errors import ModelError
from shoal.manifest import WHOLE, Manifest, parse
from shoal.program import Exchange, Lane, Plan, Program, Run, shape_of
from shoal.records import (
    ITEM_BYTES,
    Address,
    Blob,
    LinkProfile,
    Sha256,
    TensorSpec,
    Timing,
    check_name,
    check_positive,
    check_sha256,
)
from tests import build
from tests.build import A, B
from tests.unit.test_encoding import any_json, places, with_value

# --- names and figures ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "7", "pi-4.local_2", "A" * 64])
def test_names_of_letters_digits_and_three_signs_are_taken(name: str) -> None:
    assert check_name("board", name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-a", "_a", "a/b", "a b", "a+", "#", "a\n", "é", "٣", "A" * 65, "a\0", "{board}"],
)
def test_names_that_are_no_topic_level_or_no_file_name_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="board: expected 1 to 64 letters"):
        check_name("board", name)


@pytest.mark.parametrize(
    "digest", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "../" + "a" * 61]
)
def test_a_digest_is_64_lower_case_hex_digits(digest: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        check_sha256("blob", digest)
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        Blob(sha256=Sha256(digest), size_bytes=1)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_figure_that_must_be_positive_is(value: float) -> None:
    makers: tuple[Callable[[], object], ...] = (
        lambda: check_positive("x", value),
        lambda: Timing(median_s=value, spread_s=0.0, runs=1),
        lambda: LinkProfile(rtt_s=value, goodput_bytes_per_s=1.0),
        lambda: LinkProfile(rtt_s=1.0, goodput_bytes_per_s=value),
        lambda: build.profile(build.chain(), slowdown=value),
        lambda: Lane(programs={A: Program(steps=())}, weight=value),
    )
    for make in makers:
        with pytest.raises(ValueError, match="expected"):
            make()


@pytest.mark.parametrize("host", ["", "a..b", "two words", "a/b", "..", "x" * 64, "\x00"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="expected a host name or an IP address"):
        Address(host=host, data_port=1, http_port=2)


@pytest.mark.parametrize("host", ["pi", "pi-4.local", "10.0.0.7", "::1", "fe80::1%eth0", "my_board"])
def test_a_host_that_is_one_is_taken(host: str) -> None:
    assert Address(host=host, data_port=1, http_port=2).host == host


@pytest.mark.parametrize(("spread_s", "runs"), [(-1.0, 1), (math.nan, 1), (math.inf, 1), (0.0, 0), (0.0, -1)])
def test_a_timing_has_a_spread_and_runs(spread_s: float, runs: int) -> None:
    with pytest.raises(ValueError, match="timing"):
        Timing(median_s=1.0, spread_s=spread_s, runs=runs)


def test_other_figures_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="memory_bytes"):
        build.profile(build.chain(), memory_bytes=-1)
    with pytest.raises(ValueError, match="size_bytes: expected 0 or more, got -1"):
        build.blob(1, -1)
    with pytest.raises(ValueError, match="max_boards"):
        build.deployment(max_boards=-1)
    with pytest.raises(ValueError, match="model: expected 1 to 64"):
        build.deployment(name="a/b")


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_are_16_bits(port: int) -> None:
    for ports in ({"data_port": port, "http_port": 1}, {"data_port": 1, "http_port": port}):
        with pytest.raises(ValueError, match="ports 1 to 65535"):
            Address(host="h", **ports)


def test_an_ipv6_host_is_bracketed_in_a_url() -> None:
    assert Address(host="fe80::1", data_port=1, http_port=80).http_url == "http://[fe80::1]:80"
    assert Address(host="pi.local", data_port=1, http_port=80).http_url == "http://pi.local:80"


# --- tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_sizes_of_types_are_those_of_numpy(dtype: str) -> None:
    spec = TensorSpec(name="x", dtype=dtype, shape=(2, "n", 3))
    assert spec.size_bytes({"n": 5}) == np.zeros((2, 5, 3), dtype=dtype).nbytes
    assert TensorSpec(name="x", dtype=dtype, shape=()).size_bytes({}) == np.dtype(dtype).itemsize


def test_a_tensor_has_a_known_type_and_no_negative_sizes() -> None:
    with pytest.raises(ValueError, match="tensor x: expected a type of"):
        TensorSpec(name="x", dtype="complex64", shape=())
    with pytest.raises(ValueError, match="tensor x: expected sizes of 0 or more, got -1"):
        TensorSpec(name="x", dtype="int8", shape=(2, -1))
    with pytest.raises(KeyError):
        TensorSpec(name="x", dtype="int8", shape=("n",)).size_bytes({"m": 1})


# --- programs and plans ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "tensors"), [(-1, ("x",)), (65536, ("x",)), (0, ()), (0, tuple(map(str, range(256))))]
)
def test_an_exchange_fits_a_frame(tag: int, tensors: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="exchange"):
        Exchange(kind="send", tag=tag, tensors=tensors, peer=A)


def test_a_program_knows_its_segments_and_peers() -> None:
    program = Program(
        steps=(
            Exchange(kind="recv", tag=0, tensors=("h",), peer=A),
            Run(segment="s01"),
            Run(segment="s02"),
            Exchange(kind="send", tag=1, tensors=("y",), peer=B),
        )
    )
    assert program.segments == {"s01", "s02"}
    assert program.peers == {A, B}


def test_a_plan_holds_together() -> None:
    plan = build.plan(1, A, B)
    assert plan.boards == {A, B}
    assert plan.segments_of(B) == {WHOLE}
    assert plan.segments_of(build.C) == frozenset()
    fields: dict[str, Any] = {f.name: getattr(plan, f.name) for f in dataclasses.fields(Plan)}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"epoch": 0}, "expected an epoch of 1 to 4294967295, got 0"),
        ({"epoch": 1 << 32}, "expected an epoch of 1 to 4294967295"),
        ({"lanes": ()}, "expected one lane or more"),
        ({"lead": build.C}, "lead c has no program in a lane"),
        ({"addresses": {A: build.address_of(A)}}, r"no address of \['b'\]"),
    ]
    for change, words in changes:
        with pytest.raises(ValueError, match=words):
            Plan(**{**fields, **change})
    with pytest.raises(ValueError, match="lane: expected a program"):
        Lane(programs={}, weight=1.0)


def test_the_segments_of_a_board_are_those_of_all_its_lanes() -> None:
    lanes = tuple(
        Lane(programs={A: Program(steps=(Run(segment=name),))}, weight=0.5) for name in ("s00", "s01")
    )
    plan = dataclasses.replace(build.plan(), lanes=lanes)
    assert plan.segments_of(A) == {"s00", "s01"}


def test_the_shape_of_a_plan_is_its_work() -> None:
    plan = build.plan(1, A, B)
    again = dataclasses.replace(plan, epoch=9, reason="other", predicted=build.plan().predicted)
    assert again.shape() == plan.shape() == shape_of(plan.bundle, plan.strategy, plan.lead, plan.lanes)
    swapped = Lane(programs=dict(sorted(plan.lanes[0].programs.items(), reverse=True)), weight=1.0)
    assert dataclasses.replace(plan, lanes=(swapped,)).shape() == plan.shape()
    changes: tuple[dict[str, Any], ...] = (
        {"bundle": build.sha(9)},
        {"strategy": "replicate"},
        {"lead": B},
        {"lanes": build.plan(1, A).lanes},
    )
    for change in changes:
        assert dataclasses.replace(plan, **change).shape() != plan.shape()
    assert len({plan.shape(), again.shape()}) == 1


# --- manifests ------------------------------------------------------------------------------------


def refusal(text: bytes) -> str:
    with pytest.raises(ModelError) as caught:
        parse(text, "here")
    assert str(caught.value).startswith("here")
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def body(**change: object) -> bytes:
    return json.dumps({**json.loads(to_json(build.chain())), **change}).encode()


@given(manifest=build.any_of(Manifest))
@settings(max_examples=20, deadline=None)
def test_a_manifest_that_was_written_is_read_again(manifest: Manifest) -> None:
    assert parse(to_json(manifest), "here") == manifest


@pytest.mark.parametrize("text", [b"", b"x", b"\x00\xff", b"{", b"PK\x03\x04", b"[" * 100_000])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    assert "expected a manifest in JSON" in refusal(text)


@pytest.mark.parametrize("text", [b"[]", b"null", b"1", b'"x"', b"{}", b'[{"format": "shoal-bundle"}]'])
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    assert "expected shoal-bundle version 3 to 5, got None version None" in refusal(text)


@pytest.mark.parametrize("version", [1, 2, 6, 0, "3", None, 1.5, [3], {"a": 1}])
def test_another_version_is_named_before_anything_else(version: object) -> None:
    words = refusal(body(version=version, surprise=1))
    assert f"expected shoal-bundle version 3 to 5, got shoal-bundle version {version}" in words
    if isinstance(version, int):
        assert words.endswith("; update shoal here" if version == 6 else "; export the model again")


@pytest.mark.parametrize("version", [3, 4])
def test_a_bundle_of_a_version_before_is_read_as_it_is(version: int) -> None:
    """What it says means the same; there are things that it does not say."""
    told = json.loads(to_json(build.sharded()))
    assert told["version"] == 5
    for step in told["shardings"][0]["steps"]:
        for new in ("in_parts", "means_in_parts"):
            assert ("segment" in step) == (new in step)
            step.pop(new, None)
    old = parse(json.dumps({**told, "version": version}).encode(), "here")
    assert old == dataclasses.replace(build.sharded(), version=version)
    assert parse(to_json(old), "here") == old
    assert "expected ShardRun or ShardCollective" in refusal(json.dumps(told).encode())


@pytest.mark.parametrize("shardings", [None, 3, [None], [{"steps": 3}], [{"steps": [None, {"segment": 3}]}]])
def test_an_old_bundle_with_strange_shardings_is_refused(shardings: object) -> None:
    assert "here.shardings" in refusal(body(version=4, shardings=shardings))


@pytest.mark.parametrize("version", [True, 1.0, 3.0, 5.0])
def test_a_version_that_only_looks_like_ours_is_refused(version: object) -> None:
    refusal(body(version=version))


def test_another_format_is_named() -> None:
    assert "got onnx version 5" in refusal(body(format="onnx"))


def test_an_endless_or_deep_version_is_refused_shortly() -> None:
    refusal(body(version="9" * 100_000))
    for depth in range(900, 1020):
        refusal(b'{"format":%s,"version":2}' % (b"[" * depth + b"]" * depth))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cuts": []}, "expected one cut fewer than segments, got 0 cuts and 3 segments"),
        ({"segments": [], "cuts": []}, "expected one cut fewer than segments"),
        ({"name": "a/b"}, "bundle: expected 1 to 64 letters"),
        ({"opset": "17"}, "here.opset: expected int"),
        ({"batch": 1}, "here.batch: expected str or NoneType"),
        (
            {"inputs": [{"name": "x", "dtype": "float128", "shape": []}]},
            "here.inputs[0]: tensor x: expected a type",
        ),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(change: dict[str, object], words: str) -> None:
    assert words in refusal(body(**change))


def test_segments_have_distinct_names_that_can_be_files() -> None:
    segments = json.loads(to_json(build.chain()))["segments"]
    twice = [segments[0], segments[0], segments[2]]
    assert "expected distinct segment names" in refusal(body(segments=twice))
    like_whole = [{**segments[0], "name": WHOLE}, *segments[1:]]
    assert "expected distinct segment names" in refusal(body(segments=like_whole))
    outside = [{**segments[0], "name": "../s"}, *segments[1:]]
    assert "here.segments[0]: segment: expected 1 to 64 letters" in refusal(body(segments=outside))


def test_a_manifest_has_all_that_the_planner_asks_it_for() -> None:
    whole = json.loads(to_json(build.chain()))
    other = {**whole["whole"], "name": "all"}
    assert "expected a segment whole, got all" in refusal(body(whole=other))
    named = [{"name": "x", "dtype": "uint8", "shape": ["n"]}]
    assert "expected a sample size of 'n', got none" in refusal(body(inputs=named))
    strange = {"index": 1, "tensors": [{"name": "h9", "dtype": "uint8", "shape": [1]}], "size_bytes": 1}
    assert "got cut 1 with ['h9'] besides" in refusal(body(cuts=[strange, whole["cuts"][1]]))
    assert "expected cut 1 of tensors that segments make, got cut 2" in refusal(
        body(cuts=whole["cuts"][::-1])
    )


def test_blobs_are_found_by_digest_and_tensors_by_name() -> None:
    manifest = build.chain((10, 20), cut_bytes=(7,), asked=5, given=6)
    assert manifest.tensor_bytes == {"x": 5, "h1": 7, "y": 6}
    assert sorted(blob.size_bytes for blob in manifest.blobs.values()) == [10, 20, 100, 100, 100]
    assert set(manifest.by_name) == {"s00", "s01", WHOLE}
    assert manifest.whole.weight_bytes == 30
    assert manifest.verified("local")
    assert not manifest.verified("tensor")
    assert not build.chain(strategies=("local",)).verified("pipeline")


def test_a_weight_that_is_used_twice_counts_once() -> None:
    shared = build.blob(1, 50)
    manifest = build.graph(
        [
            build.Part(reads=("x",), makes=("h",), weights=(shared, build.blob(2, 5), shared)),
            build.Part(reads=("h",), makes=("y",), weights=(shared,)),
        ],
        inputs=("x",),
        outputs=("y",),
        sizes={"x": 1, "h": 1, "y": 1},
    )
    assert manifest.segments[0].weight_bytes == 55
    assert manifest.whole.weight_bytes == 55


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_anything_in_any_place_gives_a_manifest_to_plan_with_or_a_model_error(data: st.DataObject) -> None:
    whole = json.loads(to_json(build.chain()))
    at, _ = data.draw(st.sampled_from(list(places(whole))))
    text = json.dumps(with_value(whole, at, data.draw(any_json))).encode()
    try:
        manifest = parse(text, "here")
    except ModelError:
        return
    assert manifest.by_name[WHOLE] is manifest.whole
    carried = [[manifest.tensor_bytes[spec.name] for spec in cut.tensors] for cut in manifest.cuts]
    assert len(carried) == len(manifest.segments) - 1
