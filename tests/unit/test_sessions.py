"""Whatever is opened, borrowed and let go, what is loaded never takes more memory than the board offers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.agent.sessions import Sessions
from shoal.errors import BoardError
from shoal.firmware_configs.schema import Runtime
from shoal.manifest import Segment
from shoal.program import Run
from shoal.store import Store
from tests import build

MEMORY_BYTES = 500
RUNTIME = Runtime(
    threads=1,
    cores=(),
    spin_us=0,
    providers=("CPUExecutionProvider",),
    precisions=("float32",),
    instructions=(),
    prepack=True,
)
MODEL = build.chain((100, 200, 300, 50), work_bytes=40)
SEGMENTS: Mapping[str, Segment] = MODEL.by_name
RUNS = [Run(segment=name) for name in SEGMENTS]

acts = st.lists(
    st.tuples(st.sampled_from(["open", "borrow", "keep"]), st.lists(st.sampled_from(RUNS), max_size=4)),
    max_size=12,
)


def loaded_bytes(held: Sessions) -> int:
    opened = [segment for segment, _ in held._opened.values()]
    return sum(s.weight_bytes for s in opened) + max((s.work_bytes for s in opened), default=0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Open nothing, and note what would have been."""
    loads: list[str] = []

    def load(self: Sessions, segment: Segment, _part: tuple[int, ...]) -> Any:
        loads.append(segment.name)
        assert self._needed({(segment.model.sha256, ()): segment}) <= MEMORY_BYTES
        return object()

    monkeypatch.setattr(Sessions, "_load", load)
    return loads


@given(acts=acts)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_memory_is_never_spent_beyond_what_the_board_offers(
    tmp_path: Path, fake: list[str], acts: list[tuple[str, list[Run]]]
) -> None:
    held = Sessions(Store(tmp_path), RUNTIME, MEMORY_BYTES)
    for act, runs in acts:
        before, refusal = set(held._opened), ""
        wanted = {run: SEGMENTS[run.segment] for run in runs}
        try:
            if act == "open":
                assert held.open(wanted).keys() == wanted.keys()
            elif act == "borrow" and runs:
                held.borrow(SEGMENTS[runs[0].segment])
                assert set(held._opened) == before, "what is borrowed is not kept"
            elif act == "keep":
                held.keep((segment, run) for run, segment in wanted.items())
        except BoardError as error:
            refusal = str(error)
        if refusal:
            assert "the board offers 0.0 MB" in refusal
            assert set(held._opened) == before, "what does not fit changes nothing"
        assert loaded_bytes(held) <= MEMORY_BYTES
    assert set(fake) <= set(SEGMENTS)


def test_a_segment_whose_files_were_dropped_is_said_to_be_gone(tmp_path: Path) -> None:
    held = Sessions(Store(tmp_path), RUNTIME, MEMORY_BYTES)
    with pytest.raises(BoardError, match="s00: its files are not on this board's disk"):
        held.borrow(SEGMENTS["s00"])
