"""Boards that share every request by its tokens: several at once too, and one is lost in the middle of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from shoal.coordinator import client
from shoal.exporter.bundle import write_manifest
from shoal.exporter.export import export
from shoal.lab.load import compare
from shoal.lab.processes import Cluster
from shoal.manifest import Manifest
from shoal.program import Collective, Lane, Plan, serving
from tests.real.client import MODEL, Pictures, Trial, Watch, slow_board
from tests.real.conftest import BOARDS, DATA

WHOLE_S = 0.4
"""What a board takes for a request alone: so long that exchanges hardly count, however busy it is."""


def exported(folder: Path) -> Manifest:
    """Export the model so that boards can share a request by its tokens: else the machine decides how."""
    made = export(DATA / "vit-fashion-mnist.onnx", folder, name=MODEL)
    by_tokens = replace(made, shardings=tuple(s for s in made.shardings if s.strategy == "sequence"))
    write_manifest(by_tokens, folder)
    return by_tokens


def shares(plan: Plan) -> bool:
    """Say whether boards hand one another what they need for each request."""
    return len(plan.boards) > 1 and plan.strategy.partition(" ")[0] in ("sequence", "sequence-hidden")


def meets(lane: Lane, plan: Plan) -> bool:
    return any(isinstance(step, Collective) for step in lane.programs[plan.lead].steps)


async def ask_for_several(watch: Watch, plan: Plan, pictures: Pictures, batch: str) -> None:
    """Ask about as many pictures at once as the plan's boards share, and see that all of them took part.

    The rows of larger batches boards answer apart.
    """
    served = {rows: plan.lanes[serving(plan.lanes, {batch: rows})[0]] for rows in (4, 3, 2)}
    rows, lane = next((rows, lane) for rows, lane in served.items() if meets(lane, plan))
    asked = np.concatenate([pictures.inputs[index]["pixel_values"] for index in range(rows)])
    want = np.concatenate([pictures.expected[index]["logits"] for index in range(rows)])
    url = plan.addresses[plan.lead].http_url
    got = await client.infer(watch.http, url, MODEL, {"pixel_values": asked}, trace="several")
    assert compare(got["logits"], want)[1]
    events = json.loads(await client.timeline(watch.http, url, "several"))["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {f"{plan.lead} (lead)", *lane.programs} - {plan.lead}
    sent = [(event["pid"], event["name"]) for event in events if event.get("cat") == "send"]
    met = {number for number, name in sent if name.startswith("gather")}
    assert len(met) == len(lane.programs), "each hands its keys and values to the others"


def test_a_board_that_is_killed_amid_its_exchanges_costs_no_request(
    tmp_path: Path, pictures: Pictures
) -> None:
    bundle = tmp_path / "vit"
    manifest = exported(bundle)
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
            await ask_for_several(watch, plan, pictures, str(manifest.batch))
            victim = min(plan.boards - {plan.lead})
            cluster.boards[victim].kill()
            await watch.plan_with(lambda boards: victim not in boards, f"a plan without {victim}")

        tally = trial.under_load(trouble, clients=1)
        assert (tally.failed, tally.wrong) == (0, 0), tally.troubles[-5:]
        assert tally.max_abs_err < 1e-4
