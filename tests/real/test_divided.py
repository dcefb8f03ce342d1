"""Boards that share every request, by its tokens or heads: one of them is lost in the middle of it."""

from pathlib import Path

from shoal.exporter.export import export
from shoal.lab.processes import Cluster
from shoal.program import Plan
from tests.real.client import MODEL, Pictures, Trial, Watch, slow_board
from tests.real.conftest import BOARDS, DATA

WHOLE_S = 0.4
"""What a board takes for a request alone: so long that exchanges hardly count, however busy it is."""


def shares(plan: Plan) -> bool:
    """Say whether boards hand one another what they need for each request."""
    return len(plan.boards) > 1 and plan.strategy.partition(" ")[0] in (
        "sequence",
        "sequence-hidden",
        "tensor",
    )


def test_a_board_that_is_killed_amid_its_exchanges_costs_no_request(
    tmp_path: Path, pictures: Pictures
) -> None:
    bundle = tmp_path / "vit"
    export(DATA / "vit-fashion-mnist.onnx", bundle, name=MODEL)
    slow = slow_board(tmp_path / "slow.json", bundle, WHOLE_S)
    with Cluster(tmp_path / "cluster", "embedded") as cluster:
        trial = Trial(
            cluster=cluster, bundle=bundle, pictures=pictures, budget=None, boards=BOARDS, emulation=slow
        )
        trial.start()
        trial.deploy("latency")

        async def trouble(watch: Watch) -> None:
            await watch.until("a plan that divides requests", lambda: shares(watch.plans[-1]))
            plan = watch.plans[-1]
            victim = min(plan.boards - {plan.lead})
            cluster.boards[victim].kill()
            await watch.plan_with(lambda boards: victim not in boards, f"a plan without {victim}")

        tally = trial.under_load(trouble, clients=1)
        assert (tally.failed, tally.wrong) == (0, 0), tally.troubles[-5:]
        assert tally.max_abs_err < 1e-4
