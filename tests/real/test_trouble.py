"""A cluster under load, and everything that can go wrong in it: no request fails, no answer is wrong."""

import asyncio

from shoal.coordinator import client
from shoal.lab.load import Tally, compare
from shoal.messages import Birth, Desired, Heartbeat, Reported
from shoal.records import BoardId
from tests.real.client import MODEL, Trial, Watch


def unharmed(tally: Tally) -> None:
    assert tally.failed == 0, tally.troubles[-5:]
    assert tally.wrong == 0
    assert tally.max_abs_err < 1e-4


def test_every_board_gives_the_unsplit_models_answer(trial: Trial) -> None:
    async def nothing(watch: Watch) -> None:
        assert watch.plans[-1].strategy == "pipeline"
        assert len(watch.plans[-1].boards) >= 2

    unharmed(trial.under_load(nothing))


def test_a_killed_board_is_replaced_and_comes_back(trial: Trial) -> None:
    async def trouble(watch: Watch) -> None:
        plan = watch.plans[-1]
        victim = min(plan.boards - {plan.lead})
        trial.cluster.boards[victim].kill()
        after = await watch.plan_with(lambda boards: victim not in boards, f"a plan without {victim}")
        assert after.epoch > plan.epoch
        trial.restart(victim)
        watch.view.alive.discard(victim)
        await watch.until(f"{victim} back", lambda: victim in watch.view.alive)

    unharmed(trial.under_load(trouble))


def test_a_killed_lead_is_replaced(trial: Trial) -> None:
    async def trouble(watch: Watch) -> None:
        lead = watch.plans[-1].lead
        trial.cluster.boards[lead].kill()
        after = await watch.plan_with(lambda boards: lead not in boards, f"a plan without {lead}")
        assert after.lead != lead

    unharmed(trial.under_load(trouble))


def test_a_frozen_board_is_replaced(trial: Trial) -> None:
    """It keeps its connections and says nothing more: only its silence tells."""

    async def trouble(watch: Watch) -> None:
        plan = watch.plans[-1]
        victim = min(plan.boards - {plan.lead})
        trial.cluster.boards[victim].freeze()
        await watch.plan_with(lambda boards: victim not in boards, f"a plan without {victim}")
        trial.cluster.boards[victim].kill()

    unharmed(trial.under_load(trouble))


def test_a_request_handed_to_a_lead_that_freezes_is_answered_by_the_next(trial: Trial) -> None:
    """The client asks another board, which hands on to the lead; that is where it must not be lost."""

    async def trouble(watch: Watch) -> None:
        lead = watch.plans[-1].lead
        entry = watch.view.boards[min(set(trial.boards) - {lead})][Birth]
        assert isinstance(entry, Birth)
        trial.cluster.boards[lead].freeze()
        begun_s = asyncio.get_running_loop().time()
        inputs, expected = trial.pictures.inputs[0], trial.pictures.expected[0]
        answer = await client.infer(watch.http, entry.address.http_url, MODEL, inputs)
        assert asyncio.get_running_loop().time() - begun_s < 15.0
        assert compare(answer["logits"], expected["logits"])[1]
        trial.cluster.boards[lead].kill()

    unharmed(trial.under_load(trouble))


def test_a_board_that_is_told_to_stop_leaves_in_order(trial: Trial) -> None:
    async def trouble(watch: Watch) -> None:
        plan = watch.plans[-1]
        victim = min(plan.boards - {plan.lead})
        code = await asyncio.to_thread(trial.cluster.boards[victim].stop)
        assert code == 0
        await watch.plan_with(lambda boards: victim not in boards, f"a plan without {victim}")

    unharmed(trial.under_load(trouble))


def test_without_its_coordinator_the_cluster_goes_on(trial: Trial) -> None:
    async def trouble(watch: Watch) -> None:
        epoch = watch.plans[-1].epoch
        trial.cluster.coordinator.kill()
        await asyncio.sleep(1.0)
        trial.cluster.start_coordinator()
        before = watch.view.coordinator
        await watch.until("another coordinator", lambda: watch.view.coordinator != before)
        await asyncio.sleep(1.5)
        assert watch.plans[-1].epoch == epoch, "a coordinator that comes back must not switch plans"
        lead = watch.plans[-1].lead
        trial.cluster.boards[lead].kill()
        after = await watch.plan_with(lambda boards: lead not in boards, "the new coordinator's plan")
        assert after.epoch > epoch

    unharmed(trial.under_load(trouble))


def test_a_coordinator_that_was_frozen_while_another_took_over_is_obeyed_by_nobody(trial: Trial) -> None:
    """It believes that it leads when it goes on; it must find out before it says anything."""

    async def trouble(watch: Watch) -> None:
        old = trial.cluster.coordinator
        before = watch.view.coordinator
        old.freeze()
        trial.cluster.start_coordinator("--take-over")
        await watch.until("another coordinator", lambda: watch.view.coordinator != before)
        newest = watch.view.coordinator
        assert newest is not None
        await watch.until("all boards to obey it", lambda: obeyed(watch) == {newest.incarnation})
        plan = watch.plans[-1]
        victim = min(plan.boards - {plan.lead})
        trial.cluster.boards[victim].kill()
        await watch.plan_with(lambda boards: victim not in boards, f"a plan without {victim}")
        old.thaw()
        assert await asyncio.to_thread(old.wait, 60.0) == 2
        await asyncio.sleep(0.3)
        assert watch.view.coordinator == newest
        assert watch.epochs == sorted(watch.epochs)
        alive = set(trial.boards) - {victim}
        assert {wishes(watch)[board].coordinator for board in alive} == {newest.incarnation}

    unharmed(trial.under_load(trouble))


def obeyed(watch: Watch) -> set[int]:
    """Return which coordinators the boards that are alive obey, of those that said so."""
    found = (watch.view.boards.get(board, {}).get(Reported) for board in watch.view.alive)
    return {reported.coordinator for reported in found if isinstance(reported, Reported)}


def wishes(watch: Watch) -> dict[BoardId, Desired]:
    """Return what is desired of each board."""
    found = {board: said.get(Desired) for board, said in watch.view.boards.items()}
    return {board: desired for board, desired in found.items() if isinstance(desired, Desired)}


def test_without_its_broker_the_cluster_goes_on(trial: Trial) -> None:
    async def trouble(watch: Watch) -> None:
        epoch = watch.plans[-1].epoch
        trial.cluster.broker.kill()
        await asyncio.sleep(2.0)
        trial.cluster.start_broker()
        watch.view.alive.clear()
        await watch.until("all boards back", lambda: watch.view.alive >= set(trial.boards))
        await asyncio.sleep(1.0)
        assert watch.plans[-1].epoch == epoch, "a broker that comes back is no reason to switch plans"
        plan = watch.plans[-1]
        victim = min(plan.boards - {plan.lead})
        trial.cluster.boards[victim].kill()
        await watch.plan_with(lambda boards: victim not in boards, "a plan over the new broker")

    unharmed(trial.under_load(trouble))


def test_broker_and_coordinator_lost_together_are_no_reason_to_stop(trial: Trial) -> None:
    """A broker that keeps nothing forgets what is deployed; the coordinator remembers it in its folder."""

    async def trouble(watch: Watch) -> None:
        trial.cluster.broker.kill()
        trial.cluster.coordinator.kill()
        await asyncio.sleep(1.0)
        trial.cluster.start_broker()
        trial.cluster.start_coordinator("--take-over")  # from one that mosquitto remembers
        before = watch.view.coordinator
        watch.view.alive.clear()
        await watch.until("another coordinator", lambda: watch.view.coordinator != before)
        await watch.until("all boards back", lambda: watch.view.alive >= set(trial.boards))
        await asyncio.sleep(2.0)
        assert watch.view.deployment is not None

    unharmed(trial.under_load(trouble))


def test_a_second_agent_with_a_name_that_is_taken_is_refused(trial: Trial) -> None:
    async def trouble(watch: Watch) -> None:
        first = trial.cluster.boards[trial.boards[0]]
        log = trial.cluster.folder / "twin.log"
        twin = type(first)([*first.command, "--state-dir", str(trial.cluster.folder / "twin")], log)
        assert twin.wait(60.0) == 5
        assert "another agent with this name" in log.read_text()
        beats = watch.view.boards[trial.boards[0]][Heartbeat]
        await watch.until(
            "the first one's heartbeats",
            lambda: watch.view.boards[trial.boards[0]][Heartbeat] != beats,
        )
        assert first.running

    unharmed(trial.under_load(trouble))


def test_what_boards_report_is_what_was_committed(trial: Trial) -> None:
    async def look(watch: Watch) -> None:
        await trial.whole(watch)
        plan = watch.plans[-1]
        for board in plan.boards:
            reported = watch.view.boards[board][Reported]
            assert isinstance(reported, Reported)
            assert (plan.epoch, "ready") in {(r.epoch, r.phase) for r in reported.epochs}

    trial.watch(look)
