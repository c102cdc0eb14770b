"""The hub's wall clock jumps in the middle of a rollout: decades ahead, decades back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from edgewise.model.quantity import Share
from edgewise.model.rules import RolloutRules, StageRule
from edgewise.testing.fleet_in_memory import FleetInMemory

ONE, TWO = "1" * 64, "2" * 64
RULES = RolloutRules(
    stages=(
        StageRule("canary", min_targets=2, bake=timedelta(minutes=5)),
        StageRule("rest", success_threshold=Share(percent=90)),
    ),
    failure_threshold=Share(percent=10),
)


async def fleet_that_rolls_out() -> FleetInMemory:
    """Ten nodes on ONE; TWO has reached the canaries."""
    fleet = FleetInMemory(10)
    await fleet.engine.start()
    for release, minutes in ((ONE, 30), (TWO, 2)):
        proposal = fleet.proposal(release, RULES, lambda n: "canary" if n < "n2" else "rest")
        await fleet.engine.propose(proposal, actor="git")
        await fleet.settle()
        await fleet.minute(minutes)
    assert [fleet.nodes[n].running for n in ("n0", "n1", "n2")] == [TWO, TWO, ONE]
    return fleet


async def jump(fleet: FleetInMemory, year: int, *, restarted: bool) -> None:
    """Five minutes with a wrong clock, then an hour with the right one."""
    right = fleet.clock.now()
    fleet.clock.set_wall(datetime(year, 1, 2, tzinfo=UTC))
    if restarted:
        await fleet.restart_hub()
    await fleet.minute(5)
    fleet.clock.set_wall(right + timedelta(minutes=5))
    if restarted:
        await fleet.restart_hub()
    await fleet.minute(60)


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_hub_whose_clock_falls_back_to_1970_ends_the_rollout_all_the_same(
    restarted: bool,
) -> None:
    fleet = await fleet_that_rolls_out()
    await jump(fleet, 1970, restarted=restarted)
    newest = (await fleet.engine.rollouts())[0]
    assert (newest.state, newest.failed) == ("Succeeded", 0), newest.reason
    assert {n.running for n in fleet.nodes.values()} == {TWO}


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_hub_whose_clock_leaps_to_2099_pauses_and_a_person_lets_it_go_on(
    restarted: bool,
) -> None:
    """To the hub the rollout has lasted 73 years: it stops and says so, and loses nothing."""
    fleet = await fleet_that_rolls_out()
    await jump(fleet, 2099, restarted=restarted)
    newest = (await fleet.engine.rollouts())[0]
    assert (newest.state, newest.reason) == ("Paused", "not done after 3d")
    assert newest.failed == 0
    assert [fleet.nodes[n].running for n in ("n0", "n1", "n2")] == [TWO, TWO, ONE]
    await fleet.engine.command(newest.id, "resume", actor="alice", reason="the clock is right")
    await fleet.settle()
    await fleet.minute(60)
    assert (await fleet.engine.rollouts())[0].state == "Succeeded"
    assert {n.running for n in fleet.nodes.values()} == {TWO}
