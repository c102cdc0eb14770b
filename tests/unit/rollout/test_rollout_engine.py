"""The engine beside the story: its loop, its views, commands, batches and what they cost."""

import asyncio
import time
from datetime import timedelta

import pytest
from fleet_of import Play, plan
from msgspec.structs import replace

from edgewise.model.errors import BadUsage, Conflict, NotFound
from edgewise.model.rules import RolloutRules, StageRule
from edgewise.protocol.api import HeldChange
from edgewise.protocol.report import Observation
from edgewise.rollout.states import Online
from edgewise.testing.fleet_in_memory import FleetInMemory

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64
RULES = RolloutRules(stages=(StageRule("canary", bake=timedelta(minutes=5)), StageRule("rest")))


def stage_of(name: str) -> str:
    return "canary" if name == "n0" else "rest"


async def begun(nodes: int = 4) -> FleetInMemory:
    """A fleet on ONE with a rollout of TWO whose canary is told."""
    fleet = FleetInMemory(nodes)
    await fleet.engine.start()
    await fleet.engine.propose(fleet.proposal(ONE, RULES, stage_of), actor="git")
    await fleet.minute(12)
    await fleet.engine.propose(fleet.proposal(TWO, RULES, stage_of), actor="git")
    await fleet.settle()
    return fleet


async def test_the_loop_wakes_by_events_and_by_the_clock():
    fleet = await begun()
    loop = asyncio.ensure_future(fleet.engine.run())
    node = fleet.nodes["n0"]
    for _ in range(3):
        fleet.clock.advance(timedelta(minutes=1))
        fleet._live_on(node, 1.0)
        fleet.engine.observe({n: (fleet.clock.now(), None) for n in fleet.nodes})
        if node.outbox:
            await fleet.engine.receive([node.outbox.pop()])
        for _ in range(20):
            await asyncio.sleep(0)
    assert fleet.engine.fleet_status("shop").rollout_state == "Baking"
    await fleet.clock.run_for(timedelta(minutes=2, seconds=50))
    assert fleet.engine.fleet_status("shop").rollout_state == "Baking"
    fleet.engine.observe({n: (fleet.clock.now(), None) for n in fleet.nodes})
    await fleet.clock.run_for(timedelta(seconds=20))
    assert len(fleet.board.channels[-1].wave) == 1
    assert fleet.board.channels[-1].wave == b"\x0f"
    assert len(await fleet.states.all()) == 4, "last contacts are written"
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop


async def test_the_views_say_where_everything_stands():
    fleet = await begun()
    status = fleet.engine.fleet_status("shop")
    assert (status.nodes, status.stable, status.candidate) == (4, ONE, TWO)
    assert status.rollout_state == "Progressing"
    assert status.health == "Healthy"
    await fleet.minute(3)
    detail = await fleet.engine.detail(status.rollout)
    assert [(s.name, s.state, s.total, s.counts) for s in detail.stages] == [
        ("canary", "Baking", 1, {"Succeeded": 1}),
        ("rest", "Waiting", 3, {"Queued": 3}),
    ]
    assert detail.summary.succeeded == 1
    assert [t.state for t in detail.log] == ["Progressing", "Baking"]
    lines = " ".join(fleet.engine.explain("n0").lines)
    assert "member 0 of fleet shop" in lines
    assert "In stage canary it is Succeeded" in lines
    assert fleet.engine.placement("n2").index == 2
    assert fleet.engine.placement("stranger") is None
    assert "No fleet selects it" in fleet.engine.explain("stranger").lines[0]
    assert [f.name for f in fleet.engine.fleets()] == ["shop"]


async def test_offline_nodes_are_counted_after_offline_after():
    fleet = await begun()
    fleet.nodes["n3"].away = True
    await fleet.minute(4)
    assert fleet.engine.is_online("n3")
    await fleet.minute(3)
    assert not fleet.engine.is_online("n3")
    assert fleet.engine.fleet_status("shop").offline == 1


async def test_watchers_are_told_of_every_change():
    fleet = await begun()
    rollout = fleet.engine.fleet_status("shop").rollout
    seen = await fleet.engine.changed(rollout, after=-1)
    waiting = asyncio.ensure_future(fleet.engine.changed(rollout, after=seen))
    await asyncio.sleep(0)
    assert not waiting.done()
    await fleet.engine.command(rollout, "pause", actor="alice", reason="lunch")
    assert await asyncio.wait_for(waiting, 1) == seen + 1
    detail = await fleet.engine.detail(rollout)
    assert (detail.log[-1].actor, detail.log[-1].reason) == ("alice", "lunch")


async def test_commands_that_make_no_sense_are_conflicts():
    fleet = await begun()
    rollout = fleet.engine.fleet_status("shop").rollout
    with pytest.raises(Conflict, match="is Progressing"):
        await fleet.engine.command(rollout, "approve", actor="alice")
    with pytest.raises(BadUsage, match="explode"):
        await fleet.engine.command(rollout, "explode", actor="alice")
    with pytest.raises(NotFound, match="nope"):
        await fleet.engine.command("nope", "pause", actor="alice")
    with pytest.raises(NotFound, match="nope"):
        await fleet.engine.command("nope", "retry", actor="alice")
    ended = (await fleet.engine.rollouts())[1].id
    with pytest.raises(Conflict, match="has ended"):
        await fleet.engine.command(ended, "pause", actor="alice")
    with pytest.raises(Conflict, match="not about the newest commit"):
        await fleet.engine.command(ended, "retry", actor="alice")
    with pytest.raises(NotFound):
        await fleet.engine.hold("stranger", True, actor="alice")
    with pytest.raises(NotFound):
        fleet.engine.channel("nope")


async def test_an_aborted_rollout_comes_back_and_is_not_started_again_by_itself():
    fleet = await begun()
    await fleet.minute(3)
    rollout = fleet.engine.fleet_status("shop").rollout
    await fleet.engine.command(rollout, "abort", actor="alice", reason="wrong customer")
    await fleet.settle()
    await fleet.minute(5)
    assert (await fleet.engine.detail(rollout)).summary.state == "Cancelled"
    assert {n.running for n in fleet.nodes.values()} == {ONE}
    again = await fleet.engine.propose(fleet.proposal(TWO, RULES, stage_of), actor="git")
    assert (again.way, "wrong customer" in again.reason) == ("Refuse", True)


async def test_with_queue_the_newer_commit_waits_for_its_turn():
    fleet = await begun()
    rules = RolloutRules(stages=RULES.stages, on_supersede="Queue")
    await fleet.minute(12)
    await fleet.engine.propose(fleet.proposal(ONE, rules, stage_of), actor="git")
    await fleet.minute(5)
    await fleet.engine.propose(fleet.proposal("4" * 64, rules, stage_of), actor="git")
    decision = await fleet.engine.propose(fleet.proposal(THREE, rules, stage_of), actor="git")
    assert decision.way == "Queue"
    await fleet.minute(40)
    assert {n.running for n in fleet.nodes.values()} == {THREE}
    assert all("4" * 64 in n.ran for n in fleet.nodes.values())


async def test_with_continue_the_newer_commit_goes_on_at_the_stage_that_was_reached():
    rules = RolloutRules(stages=(StageRule("canary"), StageRule("rest")), on_supersede="Continue")
    fleet = FleetInMemory(4)
    await fleet.engine.start()
    await fleet.engine.propose(fleet.proposal(ONE, rules, stage_of), actor="git")
    await fleet.minute(8)
    for node in list(fleet.nodes.values())[1:]:
        node.takes = 30
    await fleet.engine.propose(fleet.proposal(TWO, rules, stage_of), actor="git")
    await fleet.settle()
    await fleet.minute(3)
    await fleet.engine.propose(fleet.proposal(THREE, rules, stage_of), actor="git")
    await fleet.settle()
    assert fleet.board.channels[-1].candidate == THREE
    assert fleet.board.channels[-1].wave == b"\x0f", "canary and rest together"


async def test_a_suspended_fleet_keeps_new_releases_waiting():
    fleet = await begun()
    await fleet.minute(12)

    suspended = replace(fleet.proposal(THREE, RULES, stage_of), suspended=True)
    assert (await fleet.engine.propose(suspended, actor="git")).way == "Queue"
    await fleet.minute(10)
    assert {n.running for n in fleet.nodes.values()} == {TWO}
    assert "suspended" in fleet.engine.fleet_status("shop").reason
    await fleet.engine.propose(fleet.proposal(THREE, RULES, stage_of), actor="git")
    await fleet.minute(15)
    assert {n.running for n in fleet.nodes.values()} == {THREE}


async def test_a_retired_fleet_has_no_nodes_and_no_rollout():
    fleet = await begun()
    await fleet.engine.retire("shop", actor="git")
    status = fleet.engine.fleet_status("shop")
    assert (status.nodes, status.rollout, status.stable) == (0, "", ONE)
    assert fleet.engine.placement("n0") is None


async def test_a_held_change_waits_until_a_person_releases_it():
    fleet = await begun()
    await fleet.engine.hold_change(HeldChange("h1", "main@sha1:2", "would delete 40 nodes"))
    await fleet.restart_hub()
    assert [h.id for h in fleet.engine.held()] == ["h1"]
    assert (await fleet.engine.release_change("h1")).revision == "main@sha1:2"
    assert await fleet.engine.release_change("h1") is None
    assert fleet.engine.held() == ()


async def test_a_forgotten_node_leaves_no_receipts():
    fleet = await begun()
    assert await fleet.store.receipts("n0")
    await fleet.engine.flush()
    await fleet.engine.forget("n0")
    assert await fleet.store.receipts("n0") == ()
    assert [s.node for s in await fleet.states.all()] == ["n1", "n2", "n3"]


async def test_an_old_contact_never_replaces_a_newer_one():
    fleet = await begun()
    now = fleet.clock.now()
    fleet.engine.observe({"n0": (now, Observation(running=TWO))})
    fleet.engine.observe({"n0": (now - timedelta(minutes=1), Observation(running=ONE))})
    assert fleet.engine.last_seen("n0").observation.running == TWO


@pytest.mark.parametrize("nodes", [1_000, 10_000])
def test_a_step_costs_what_its_events_touch(nodes):
    """100 receipts must cost about the same in a large fleet as in a small one."""
    play = Play(plan(nodes), online=False)
    play.do(*(Online(i) for i in range(nodes)))
    play.good(*range(100))
    began = time.perf_counter()
    play.good(*range(100, 200))
    assert time.perf_counter() - began < 0.1
    assert len(play.last.changed) == 100
