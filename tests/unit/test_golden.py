"""No plan comes into force before it has given the right answer to the bundle's golden request."""

from dataclasses import replace

import numpy as np
import pytest

from shoal import golden
from shoal.errors import ModelError
from shoal.golden import EXACT, ROUNDED, Golden, pack, unpack, why_wrong
from shoal.program import Plan
from tests import build
from tests.build import A, B
from tests.unit.test_controller import SMALL, World, measured

ONE = Golden(
    inputs={"x": np.arange(6, dtype=np.float32).reshape(2, 3), "mask": np.ones((2,), np.int64)},
    outputs={"y": np.array([[1.0, -8.0]], np.float32)},
)


def test_it_is_the_same_after_a_file_and_the_file_is_always_the_same() -> None:
    content = pack(ONE)
    assert content == pack(Golden(inputs=dict(reversed([*ONE.inputs.items()])), outputs=ONE.outputs))
    found = unpack(content)
    assert found.inputs.keys() == ONE.inputs.keys()
    for name, tensor in {**ONE.inputs, **ONE.outputs}.items():
        got = {**found.inputs, **found.outputs}[name]
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(got, tensor)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"junk" * 99, pack(ONE)[:200], pack(replace(ONE, outputs={}))]
)
def test_what_is_no_golden_request_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match="golden request: expected"):
        unpack(content)


def test_an_answer_is_right_within_rounding_and_wrong_beyond() -> None:
    def answer(*numbers: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
        return {"y": np.array([numbers], np.float32)}

    assert why_wrong(ONE, answer(1.0, -8.0), EXACT) == ""
    assert why_wrong(ONE, answer(1.007, -8.0), EXACT) == ""
    assert (
        why_wrong(ONE, answer(1.009, -8.0), EXACT) == "output y: off by 0.009 where the largest number is 8"
    )
    assert why_wrong(ONE, answer(3.0, -8.0), ROUNDED) == ""
    assert why_wrong(ONE, answer(-8.0, 1.0), ROUNDED).startswith("output y: off by 9")
    assert why_wrong(ONE, answer(float("nan"), -8.0), ROUNDED).startswith("output y: off by nan")
    assert why_wrong(ONE, {}, EXACT) == "output y: expected float32 [1, 2], got none"
    assert why_wrong(ONE, answer(1.0), EXACT) == "output y: expected float32 [1, 2], got float32 [1, 1]"
    infinite = replace(ONE, outputs={"y": np.array([[np.inf, 1.0]], np.float32)})
    assert why_wrong(infinite, answer(np.inf, 1.0), EXACT) == ""
    assert why_wrong(infinite, answer(5.0, 1.0), EXACT) == "output y: NaN or infinity differ"


# --- the controller ---------------------------------------------------------------------------------

PROVABLE = replace(SMALL, golden=build.blob(77))


def world_of(**of_a: object) -> World:
    world = World(PROVABLE)
    world.add(A, profile=measured(0.1, PROVABLE), **of_a)
    world.add(B, profile=measured(0.3, PROVABLE))
    world.deploy(build.deployment())
    return world


def test_a_plan_is_proven_by_its_lead_once_all_boards_are_ready() -> None:
    world = world_of(prepare_s=1.0)
    world.run(0.9)
    assert world.said[A].proving == 0, "not ready yet"
    world.until(lambda: world.serving, 5)
    assert world.boards[A].proven == 1
    assert world.said[A].committed == 1
    assert world.said[A].proving == 0, "and not again"


def test_a_plan_that_answers_wrongly_is_given_up_with_the_reason() -> None:
    def wrong(plan: Plan) -> bool:
        return plan.strategy == "local"

    world = world_of(answers_wrongly=wrong)
    world.until(lambda: world.serving, 10)
    assert world.serving is not None
    assert world.serving.strategy != "local" or world.serving.lead == B
    assert world.plans[0][1].reason.startswith("gave up epoch 1 (a: not proven: output y: off by 2): ")


def test_a_plan_that_answers_wrongly_is_not_tried_again_soon_while_another_serves() -> None:
    world = world_of(answers_wrongly=lambda plan: plan.strategy == "local")
    world.until(lambda: world.serving, 10)
    served = world.serving
    world.run(200)
    assert served is not None
    assert world.serving == served
    assert served.strategy != "local"
    assert world.state.epoch == served.epoch, "none was prepared since"


def test_a_lead_that_never_proves_its_plan_is_not_waited_for_without_end() -> None:
    world = world_of()
    world.boards[A].proven = 99  # what an earlier plan of that board was, it says for ever
    world.boards[A].answers_wrongly = lambda _plan: False
    world.until(lambda: world.serving, 5)
    assert world.boards[A].proven == 1


def test_a_bundle_without_a_golden_request_is_served_as_before() -> None:
    world = World(SMALL)
    world.add(A, profile=measured(0.1))
    world.deploy(build.deployment())
    world.until(lambda: world.serving, 5)
    assert all(desired.proving == 0 for desired in world.said.values())
    assert golden.EXACT < golden.ROUNDED
