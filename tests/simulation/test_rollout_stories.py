"""Whole stories: the real engine and simulated nodes on a manual clock."""

from datetime import timedelta

import pytest
from msgspec.structs import replace

from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.rollouts import SqliteNodeStates, SqliteRollouts
from edgewise.model.quantity import Share
from edgewise.model.rules import RolloutRules, StageRule
from edgewise.protocol.content import Window
from edgewise.testing.fleet_in_memory import FleetInMemory

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)
RULES = RolloutRules(
    stages=(
        StageRule(
            "canary", min_targets=2, success_threshold=Share(percent=80), bake=timedelta(minutes=5)
        ),
        StageRule("rest", max_concurrent=Share(percent=50), success_threshold=Share(percent=90)),
    ),
    failure_threshold=Share(percent=10),
    min_failures=2,
)


def by_number(canaries: int):
    return lambda name: "canary" if int(name[1:]) < canaries else "rest"


async def fleet_on(release: str, nodes: int = 10, canaries: int = 3, **stores) -> FleetInMemory:
    """A fleet that runs ``release`` everywhere, by a rollout of its own."""
    fleet = FleetInMemory(nodes, **stores)
    await fleet.engine.start()
    await propose(fleet, release, canaries)
    await fleet.minute(30)
    assert fleet.engine.fleet_status("shop").stable == release
    assert {n.running for n in fleet.nodes.values()} == {release}
    return fleet


async def propose(fleet: FleetInMemory, release: str, canaries: int = 3, rules=RULES, **more):
    decision = await fleet.engine.propose(
        fleet.proposal(release, rules, by_number(canaries), **more), actor="git"
    )
    await fleet.settle()
    return decision


async def test_a_good_release_reaches_every_node_in_stages():
    fleet = await fleet_on(ONE)
    assert (await propose(fleet, TWO)).way == "Full"
    await fleet.minute(4)
    assert {n.running for n in list(fleet.nodes.values())[3:]} == {ONE}, "the canaries still bake"
    await fleet.minute(26)
    assert {n.running for n in fleet.nodes.values()} == {TWO}
    newest = (await fleet.engine.rollouts())[0]
    assert (newest.state, newest.succeeded, newest.failed) == ("Succeeded", 10, 0)
    sequences = [c.sequence for c in fleet.board.channels]
    assert sequences == sorted(set(sequences)), "every channel is newer than the one before"


async def test_a_bad_release_is_caught_at_the_canary_and_taken_back():
    fleet = await fleet_on(ONE)
    fleet.broken = lambda node, release: release == TWO and node.name != "n0"
    await propose(fleet, TWO)
    await fleet.minute(20)
    assert {n.running for n in fleet.nodes.values()} == {ONE}
    assert [n.name for n in fleet.nodes.values() if TWO in n.ran] == ["n0", "n1", "n2"]
    newest = (await fleet.engine.rollouts())[0]
    assert (newest.state, newest.failed) == ("RolledBack", 2)
    status = fleet.engine.fleet_status("shop")
    assert (status.stable, status.quarantined, status.candidate) == (ONE, (TWO,), "")
    refused = await propose(fleet, TWO)
    assert (refused.way, "quarantined" in refused.reason) == ("Refuse", True)
    assert any(n.event == "RolloutFailed" for n in fleet.board.notices.values())


async def test_the_fix_after_a_bad_release_goes_through_all_stages():
    fleet = await fleet_on(ONE)
    fleet.broken = lambda node, release: release == TWO
    await propose(fleet, TWO)
    await fleet.minute(10)
    assert (await propose(fleet, THREE)).way == "Full"
    await fleet.minute(30)
    assert {n.running for n in fleet.nodes.values()} == {THREE}


async def test_a_person_may_retry_a_quarantined_release():
    fleet = await fleet_on(ONE)
    fleet.broken = lambda node, release: release == TWO
    await propose(fleet, TWO)
    await fleet.minute(10)
    fleet.broken = lambda node, release: False
    failed = (await fleet.engine.rollouts())[0]
    await fleet.engine.command(failed.id, "retry", actor="alice", reason="the database is back")
    await fleet.settle()
    await fleet.minute(30)
    assert {n.running for n in fleet.nodes.values()} == {TWO}
    assert fleet.engine.fleet_status("shop").quarantined == ()


async def test_with_all_canaries_offline_nobody_else_moves():
    fleet = await fleet_on(ONE)
    for name in ("n0", "n1", "n2"):
        fleet.nodes[name].away = True
    await fleet.minute(10)
    await propose(fleet, TWO)
    await fleet.minute(60)
    status = fleet.engine.fleet_status("shop")
    assert status.rollout_state == "WaitingForTargets"
    assert {n.running for n in fleet.nodes.values()} == {ONE}
    for name in ("n0", "n1", "n2"):
        fleet.nodes[name].away = False
    await fleet.minute(30)
    assert {n.running for n in fleet.nodes.values()} == {TWO}


async def test_a_newer_commit_supersedes_in_flight_and_untold_nodes_never_see_the_old_one():
    fleet = await fleet_on(ONE)
    await propose(fleet, TWO)
    await fleet.minute(3)
    assert fleet.nodes["n0"].running == TWO
    await propose(fleet, THREE)
    assert fleet.nodes["n0"].running == TWO, "it keeps what it runs until it is told again"
    await fleet.minute(30)
    assert {n.running for n in fleet.nodes.values()} == {THREE}
    assert [n.name for n in fleet.nodes.values() if TWO in n.ran] == ["n0", "n1", "n2"]
    states = [r.state for r in await fleet.engine.rollouts()]
    assert states == ["Succeeded", "Superseded", "Succeeded"]


async def test_superseded_canaries_keep_their_release_while_the_new_one_waits():
    fleet = await fleet_on(ONE)
    await propose(fleet, TWO)
    await fleet.minute(3)
    slow = RolloutRules(stages=(StageRule("canary", approval=True), StageRule("rest")))
    await propose(fleet, THREE, rules=slow)
    await fleet.minute(10)
    assert [n.running for n in fleet.nodes.values()] == [TWO] * 3 + [ONE] * 7
    running = fleet.engine.fleet_status("shop").rollout
    await fleet.engine.command(running, "approve", actor="alice")
    await fleet.settle()
    await fleet.minute(10)
    assert {n.running for n in fleet.nodes.values()} == {THREE}


async def test_a_revert_commit_brings_the_told_nodes_straight_back():
    fleet = await fleet_on(ONE)
    await propose(fleet, TWO)
    await fleet.minute(3)
    assert (await propose(fleet, ONE)).way == "Revert"
    await fleet.minute(3)
    assert {n.running for n in fleet.nodes.values()} == {ONE}
    assert all(TWO not in n.ran for n in list(fleet.nodes.values())[3:])
    assert fleet.engine.fleet_status("shop").quarantined == ()


async def test_a_revert_after_success_needs_no_stages():
    fleet = await fleet_on(ONE)
    await propose(fleet, TWO)
    await fleet.minute(30)
    assert (await propose(fleet, ONE)).way == "Restore"
    await fleet.minute(3)
    assert {n.running for n in fleet.nodes.values()} == {ONE}


async def test_a_change_that_touches_no_node_is_adopted_without_a_rollout():
    fleet = await fleet_on(ONE)
    before = len(await fleet.engine.rollouts())
    decision = await propose(fleet, TWO, selections=lambda name: ONE)
    assert decision.way == "Adopt"
    assert fleet.engine.fleet_status("shop").stable == TWO
    assert len(await fleet.engine.rollouts()) == before


async def test_a_node_that_joins_during_a_rollout_gets_the_stable_release():
    fleet = await fleet_on(ONE)
    await propose(fleet, TWO)
    fleet.nodes["n99"] = type(fleet.nodes["n0"])("n99")
    assert (await propose(fleet, TWO)).way == "Rules"
    await fleet.minute(3)
    assert fleet.nodes["n99"].running == ONE
    await fleet.minute(30)
    assert fleet.nodes["n99"].running == TWO


async def test_an_index_is_never_given_to_another_node():
    fleet = await fleet_on(ONE, nodes=4)
    gone = fleet.engine.placement("n3").index
    keeper = fleet.nodes.pop("n3")
    await propose(fleet, ONE)
    assert fleet.engine.placement("n3") is None
    fleet.nodes["new"] = type(keeper)("new")
    fleet.nodes.pop("new")
    fleet.nodes["n50"] = type(keeper)("n50")
    await propose(fleet, ONE)
    assert fleet.engine.placement("n50").index != gone
    fleet.nodes["n3"] = keeper
    await propose(fleet, ONE)
    assert fleet.engine.placement("n3").index == gone


async def test_a_held_node_keeps_what_it_runs_until_it_is_released():
    fleet = await fleet_on(ONE)
    await fleet.engine.hold("n5", True, actor="alice", reason="on the bench")
    await propose(fleet, TWO)
    await fleet.minute(30)
    assert [n.name for n in fleet.nodes.values() if n.running == ONE] == ["n5"]
    assert "on the bench" in " ".join(fleet.engine.explain("n5").lines)
    await fleet.engine.hold("n5", False, actor="alice")
    await fleet.settle()
    await fleet.minute(3)
    assert fleet.nodes["n5"].running == TWO


async def test_a_node_that_lies_about_its_digest_is_no_success():
    fleet = await fleet_on(ONE)
    for name in ("n0", "n1"):
        fleet.nodes[name].lies = True
    await propose(fleet, TWO)
    await fleet.minute(60)
    assert all(TWO not in n.ran for n in list(fleet.nodes.values())[3:])


NIGHTS = Window("0 3 * * *", 7200)


async def fleet_by_night(**stores) -> FleetInMemory:
    """A fleet that applies from 3 to 5 o'clock; it is noon."""
    fleet = await fleet_on(ONE, **stores)
    for node in fleet.nodes.values():
        node.window = NIGHTS
    await fleet.minute(12 * 60 - 31)
    assert fleet.clock.now().hour == 11
    return fleet


async def test_nodes_that_wait_for_the_night_are_neither_failed_nor_paused(tmp_path):
    database = Database.open(tmp_path / "hub.db")
    fleet = await fleet_by_night(store=SqliteRollouts(database), states=SqliteNodeStates(database))
    rules = replace(RULES, max_duration=timedelta(hours=2))
    await propose(fleet, TWO, rules=rules)
    await fleet.minute(3)
    await fleet.restart_hub()
    await fleet.minute(14 * 60)
    status = fleet.engine.fleet_status("shop")
    assert status.rollout_state == "WaitingForWindow"
    assert status.reason == (
        "3 nodes wait for their update window, the next opens 2026-01-02 03:00 UTC"
    )
    assert "waits for its apply window, which opens 2026-01-02 03:00 UTC" in " ".join(
        fleet.engine.explain("n0").lines
    )
    await fleet.minute(120)
    assert {n.running for n in fleet.nodes.values()} == {TWO}
    newest = (await fleet.engine.rollouts())[0]
    assert (newest.state, newest.failed) == ("Succeeded", 0)
    database.close()


async def test_a_stage_that_missed_the_night_waits_for_the_next_one():
    fleet = await fleet_by_night()
    slow = replace(
        RULES, stages=(replace(RULES.stages[0], bake=timedelta(hours=4)), StageRule("rest"))
    )
    slow = replace(slow, max_duration=timedelta(hours=8))
    await propose(fleet, TWO, rules=slow)
    await fleet.minute(24 * 60)
    assert fleet.engine.fleet_status("shop").rollout_state == "WaitingForWindow"
    assert [n.running for n in fleet.nodes.values()] == [TWO] * 3 + [ONE] * 7
    await fleet.minute(18 * 60)
    assert {n.running for n in fleet.nodes.values()} == {TWO}
    assert (await fleet.engine.rollouts())[0].state == "Succeeded"


async def test_a_commit_that_only_opens_the_window_does_not_wait_for_it():
    fleet = await fleet_by_night()
    await propose(fleet, TWO, selections=lambda name: TWO)
    await fleet.minute(3)
    assert fleet.engine.fleet_status("shop").rollout_state == "WaitingForWindow"
    for node in fleet.nodes.values():
        node.window = None
    decision = await propose(fleet, THREE, selections=lambda name: TWO)
    assert decision.way == "Full"
    await fleet.minute(30)
    assert {n.running for n in fleet.nodes.values()} == {THREE}
    assert [r.state for r in await fleet.engine.rollouts()][:2] == ["Succeeded", "Superseded"]


async def test_a_node_that_fails_in_the_night_is_seen_as_by_day():
    fleet = await fleet_by_night()
    fleet.broken = lambda node, release: release == TWO
    await propose(fleet, TWO)
    await fleet.minute(16 * 60)
    assert (await fleet.engine.rollouts())[0].state == "RolledBack"
    assert {n.running for n in fleet.nodes.values()} == {ONE}


async def test_a_relay_that_is_cut_off_for_an_hour_loses_nothing():
    rules = RolloutRules(
        stages=(StageRule("canary"), StageRule("rest")), failure_threshold=Share(percent=50)
    )
    fleet = await fleet_on(ONE)
    await propose(fleet, TWO, rules=rules)
    await fleet.minute(4)
    behind = [fleet.nodes[n] for n in ("n7", "n8", "n9")]
    for node in behind:
        node.away = True
    await fleet.minute(60)
    for node in behind:
        node.away = False
    await fleet.minute(10)
    assert {n.running for n in fleet.nodes.values()} == {TWO}


async def test_a_thousand_flapping_nodes_converge():
    fleet = await fleet_on(ONE, nodes=1000, canaries=20)
    await propose(fleet, TWO, canaries=20)
    for minute in range(60):
        for i, node in enumerate(fleet.nodes.values()):
            node.away = (i * 7 + minute) % 11 < 2
        await fleet.minute()
    for node in fleet.nodes.values():
        node.away = False
    await fleet.minute(10)
    assert {n.running for n in fleet.nodes.values()} == {TWO}
    newest = (await fleet.engine.rollouts())[0]
    detail = await fleet.engine.detail(newest.id)
    assert sum(s.total for s in detail.stages) == 1000
    assert all(sum(s.counts.values()) == s.total for s in detail.stages)


@pytest.mark.parametrize("kind", ["good", "bad"])
async def test_a_hub_that_dies_every_minute_still_finishes_the_story(tmp_path, kind):
    database = Database.open(tmp_path / "hub.db")
    fleet = await fleet_on(ONE, store=SqliteRollouts(database), states=SqliteNodeStates(database))
    fleet.broken = lambda node, release: kind == "bad" and release == TWO
    await propose(fleet, TWO)
    for _ in range(40):
        await fleet.minute()
        await fleet.restart_hub()
    await fleet.minute()
    assert {n.running for n in fleet.nodes.values()} == {TWO if kind == "good" else ONE}
    assert (await fleet.engine.rollouts())[0].state == (
        "Succeeded" if kind == "good" else "RolledBack"
    )
    database.close()


REVERTING = replace(RULES, on_failure_git="RevertCommit")


async def fleet_with_a_bad_release(rules: RolloutRules = REVERTING, **stores) -> FleetInMemory:
    fleet = await fleet_on(ONE, **stores)
    fleet.broken = lambda node, release: release == TWO
    await propose(fleet, TWO, rules=rules)
    return fleet


async def test_the_commit_of_a_failed_rollout_is_reverted_once():
    fleet = await fleet_with_a_bad_release()
    await fleet.minute(20)
    (asked,) = fleet.board.reverts
    newest = (await fleet.engine.rollouts())[0]
    assert (asked.rollout, asked.fleet, asked.state) == (newest.id, "shop", "RolledBack")
    assert (asked.revision, asked.good) == (f"main@sha1:{TWO[:8]}", f"main@sha1:{ONE[:8]}")
    log = (await fleet.engine.detail(newest.id)).log
    assert log[-1].reason == f"main@sha1:{TWO[:8]} is reverted"
    assert [n.event for n in fleet.board.notices.values()][-1] == "CommitReverted"
    assert (await propose(fleet, ONE)).way == "Nothing", "the revert commit moves nobody"


async def test_a_hub_that_dies_over_a_revert_makes_it_afterwards(tmp_path):
    database = Database.open(tmp_path / "hub.db")
    fleet = await fleet_with_a_bad_release(
        store=SqliteRollouts(database), states=SqliteNodeStates(database)
    )

    def dies(what: str) -> None:
        if what in dying:
            dying.remove(what)
            raise RuntimeError(what)

    dying = ["revert", "reverted"]
    fleet.board.before = dies
    for _ in range(20):
        try:
            await fleet.minute()
        except RuntimeError:
            await fleet.restart_hub()
    assert not dying
    assert len(fleet.board.reverts) == 1
    newest = (await fleet.engine.rollouts())[0]
    log = (await fleet.engine.detail(newest.id)).log
    assert [line.reason.endswith("is reverted") for line in log].count(True) == 1
    database.close()


@pytest.mark.parametrize("kind", ["policy", "pause", "abort", "newer"])
async def test_nothing_is_reverted_that_nobody_asked_for(kind):
    rules = {
        "policy": RULES,
        "pause": replace(REVERTING, on_failure="Pause"),
    }.get(kind, REVERTING)
    fleet = await fleet_with_a_bad_release(rules)
    if kind == "abort":
        running = fleet.engine.fleet_status("shop").rollout
        await fleet.engine.command(running, "abort", actor="alice")
    if kind == "newer":
        budget = replace(rules, max_unavailable=Share(count=1), group_by=("site",))
        await propose(fleet, THREE, rules=budget)
    await fleet.minute(20)
    assert fleet.board.reverts == []
