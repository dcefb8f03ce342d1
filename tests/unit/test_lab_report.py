"""The figures of a run, against what one can work out by hand."""

from pathlib import Path
from typing import Any

import pytest

from shoal.lab.calibration import Calibration
from shoal.lab.plot import draw
from shoal.lab.report import (
    Baseline,
    Carried,
    Fate,
    Happening,
    Outcome,
    Request,
    Switch,
    Usage,
    quantile_s,
    rate_per_s,
    reactions,
    render,
    summary,
)
from shoal.records import BoardId

A, B = BoardId("a"), BoardId("b")


def request(asked_s: float, took_s: float, fate: Fate = "right") -> Request:
    return Request(asked_s=asked_s, took_s=took_s, fate=fate)


def switch(at_s: float, epoch: int) -> Switch:
    return Switch(
        at_s=at_s,
        epoch=epoch,
        strategy="pipeline",
        boards=(A, B),
        predicted_s=0.1,
        reason="why",
        begun_s=at_s,
    )


BASELINE = tuple(request(float(t), 0.2) for t in range(5))

# One request a second: 100 ms each until b dies at 10 s; then 600 ms for two, and 200 ms from 12 s on.
OUTCOME = Outcome(
    calibration=Calibration(seconds={}),
    baselines=(
        Baseline(strategy="pipeline", boards=(B, A), requests=BASELINE),
        Baseline(strategy="replicate", boards=(), requests=()),
    ),
    scenario="s",
    how="measured",
    notes=("a note",),
    duration_s=20.0,
    up_s=1.5,
    requests=(
        *(request(float(t), 0.1) for t in range(10)),
        request(10.0, 1.6, "failed"),
        *(request(float(t), 0.6) for t in (10, 11)),
        *(request(float(t), 0.2) for t in range(12, 19)),
    ),
    baseline=tuple(request(float(t), 0.3) for t in range(5)),
    single=A,
    switches=(switch(0.0, 1), switch(10.7, 2)),
    happenings=(Happening(at_s=10.0, what="b killed"),),
    usage=(
        Usage(board=A, speed_asked=0.1, speed_got=0.09, quota=None, cpu_s=2.0, share=0.1),
        Usage(board=B, speed_asked=0.1, speed_got=None, quota=0.5, cpu_s=1.0, share=0.05, throttled=7),
    ),
    carried=(Carried(source=A, target=B, size_bytes=1900), Carried(source=B, target=A, size_bytes=0)),
)


def test_quantiles_are_those_of_the_answers() -> None:
    taken = [request(0, t) for t in (5.0, 1.0, 3.0, 2.0, 4.0)]
    assert [quantile_s(taken, q) for q in (0.2, 0.5, 0.95, 0.99)] == [1.0, 3.0, 5.0, 5.0]
    assert quantile_s([request(0, 9.0, "failed")], 0.5) is None


def test_a_rate_is_counted_between_answers() -> None:
    assert rate_per_s([request(t, 0.5) for t in (0.0, 1.0, 2.0, 4.0)]) == pytest.approx(3 / 4)
    assert rate_per_s([request(0.0, 1.0)]) is None


def test_the_summary_counts_everything_once() -> None:
    found = summary(OUTCOME)
    assert (found["requests"], found["failed"], found["wrong"]) == (20, 1, 0)
    assert found["p50_ms"] == pytest.approx(100.0)
    assert found["single_p50_ms"] == pytest.approx(300.0)
    assert found["calm_latency_speed_up"] == pytest.approx(3.0)
    assert found["calm_rate_speed_up"] == pytest.approx(1.0)
    assert found["cpu_s"] == pytest.approx(3.0)
    assert found["bytes_per_inference"] == {"a -> b": 100.0}


def test_an_event_is_followed_by_a_plan_and_then_by_its_speed() -> None:
    (reaction,) = reactions(OUTCOME)
    assert reaction.plan_s == pytest.approx(0.7)
    # The first of three answers at 200 ms ends at 12.2 s.
    assert reaction.steady_s == pytest.approx(2.2)


def test_an_event_without_a_plan_says_so() -> None:
    calm = Outcome(
        **{name: getattr(OUTCOME, name) for name in OUTCOME.__slots__} | {"switches": (switch(0.0, 1),)}
    )
    (reaction,) = reactions(calm)
    assert reaction.plan_s is None


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "run.png"
    draw(OUTCOME, file)
    assert file.read_bytes()[:4] == b"\x89PNG"
    assert file.stat().st_size > 20_000  # not an empty page


def test_a_person_finds_the_same_figures() -> None:
    words = render(OUTCOME)
    for expected in (
        "a note",
        "best single board (a)",
        "3.00 times",
        "b killed",
        "0.70 s",
        "2.20 s",
        "a -> b",
    ):
        assert expected in words


def test_each_baseline_stands_beside_the_cluster() -> None:
    found: dict[str, Any] = {**summary(OUTCOME)}
    pipeline, replicate = found["baselines"]
    assert pipeline["boards"] == ["b", "a"]
    assert pipeline["p50_ms"] == pytest.approx(200.0)
    assert pipeline["calm_latency_speed_up"] == pytest.approx(2.0)
    assert replicate["p50_ms"] is None
    words = render(OUTCOME)
    assert "against the best pipeline, before the first event: 2.00 times its speed" in words
    assert "replicate (no such plan)" in words
    assert "against the best replicate" not in words
