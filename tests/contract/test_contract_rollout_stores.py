"""What every rollout store and node state store keeps to."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.rollouts import SqliteNodeStates, SqliteRollouts
from edgewise.model.quantity import Share
from edgewise.model.rules import Gate, RolloutRules, StageRule
from edgewise.protocol.api import HeldChange
from edgewise.protocol.channel import Bitmap, Channel
from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout import states as s
from edgewise.rollout.fleet import FleetState, Member, MemberPlan, Proposal, Quarantined
from edgewise.rollout.ports import (
    RECEIPTS_PER_NODE,
    ROLLOUTS_KEPT,
    Change,
    NodeSeen,
    Notice,
    Revert,
)
from edgewise.testing.rollouts import MemoryNodeStates, MemoryRollouts

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
A, B = "a" * 64, "b" * 64
GATE = Gate("web", "http", {"url": "http://x"}, timedelta(seconds=30))
RULES = RolloutRules(
    stages=(StageRule("canary", limit=Share(count=5), bake=timedelta(minutes=10), gates=(GATE,)),)
)


@pytest.fixture(params=["memory", "sqlite"])
def stores(request, tmp_path):
    """A store, a node state store, and how to open the same data again."""
    if request.param == "memory":
        pair = MemoryRollouts(), MemoryNodeStates()
        yield pair, lambda: pair
        return
    opened = [Database.open(tmp_path / "hub.db")]

    def again():
        opened[-1].close()
        opened.append(Database.open(tmp_path / "hub.db"))
        return SqliteRollouts(opened[-1]), SqliteNodeStates(opened[-1])

    yield (SqliteRollouts(opened[0]), SqliteNodeStates(opened[0])), again
    opened[-1].close()


def plan(identifier: str = "shop-1", fleet: str = "shop") -> s.RolloutPlan:
    nodes = (s.PlannedNode(0, "n0", 0, "site=a"), s.PlannedNode(1, "n1", 0, "site=b", "Held"))
    return s.RolloutPlan(identifier, fleet, "main@sha1:1", B, A, RULES, RULES.stages, T0, nodes)


def course() -> s.Course:
    return s.Course(T0, (s.StageCourse(started=T0),))


def begun(identifier: str = "shop-1", head: s.Head | None = None, ended=None) -> Change:
    head = head or s.Progressing(0, T0)
    return Change(plans=[plan(identifier)], heads={identifier: (head, course(), ended)})


def receipt(sequence: int, node: str = "n0", release: str = B) -> Receipt:
    return Receipt(node, sequence, "Succeeded", release, release, "shop-1", T0)


async def test_everything_of_one_commit_is_there_after_reopening(stores):
    (store, _), again = stores
    channel = Channel("shop", 3, A, B, Bitmap.of([0]).data)
    fleet = FleetState("shop", channel, A, quarantined=(Quarantined(B, "bad", T0, "shop-0"),))
    proposal = Proposal("shop", B, "main@sha1:1", RULES, {"n0": MemberPlan(B, "canary", "n0")})
    notice = Notice("1", T0, "RolloutPaused", "shop", "shop-1", "why")
    await store.commit(
        Change(
            fleets={"shop": fleet},
            members={"shop": {"n0": Member(0), "n1": Member(1, held=True)}},
            proposals=[proposal],
            plans=[plan()],
            heads={"shop-1": (s.Progressing(0, T0), course(), None)},
            rows={"shop-1": {0: s.Row("Dispatched", 0, told=True, dispatched=T0)}},
            log={"shop-1": [s.Moved(T0, "Progressing", "hub", "begins")]},
            announce={"shop": channel},
            notices=[notice],
            held=[HeldChange("h1", "main@sha1:2", "would delete 40 nodes")],
        )
    )
    store, _ = again()
    loaded = await store.load()
    assert loaded.fleets == {"shop": fleet}
    assert loaded.members == {"shop": {"n0": Member(0), "n1": Member(1, held=True)}}
    assert loaded.proposals == (proposal,)
    assert [(r.plan, r.head, r.course) for r in loaded.running] == [
        (plan(), s.Progressing(0, T0), course())
    ]
    assert loaded.undone.announce == {"shop": channel}
    assert loaded.undone.notices == (notice,)
    assert [h.id for h in loaded.held] == ["h1"]
    assert await store.rows("shop-1") == {0: s.Row("Dispatched", 0, told=True, dispatched=T0)}
    assert [m.reason for m in await store.log("shop-1")] == ["begins"]


BAKING = s.Baking(0, T0, T0 + timedelta(minutes=10), (s.GateRecord("web", T0),))


@pytest.mark.parametrize(
    "head",
    [
        s.Pending(T0),
        s.Progressing(0, T0, "why"),
        s.WaitingForTargets(0, T0, "why"),
        s.WaitingForWindow(0, T0, "why", T0 + timedelta(hours=3)),
        s.WaitingForApproval(0, T0),
        BAKING,
        s.Paused(T0, "alice", "why", BAKING),
        s.RollingBack(0, T0, "why", "RolledBack", 0),
        s.Succeeded(T0),
        s.RolledBack(T0, "why"),
        s.Failed(T0, "why"),
        s.Cancelled(T0, "why"),
        s.Superseded(T0, "why", A),
    ],
    ids=lambda h: type(h).__name__,
)
async def test_every_state_of_a_rollout_comes_back_as_it_was(stores, head):
    (store, _), again = stores
    ended = T0 if isinstance(head, s.Ended) else None
    await store.commit(begun(head=head, ended=ended))
    store, _ = again()
    found = await store.rollout("shop-1")
    assert found is not None
    assert (found.head, found.ended) == (head, ended)
    assert len((await store.load()).running) == (0 if ended else 1)


async def test_an_announcement_waits_until_it_or_a_newer_one_is_out(stores):
    (store, _), _ = stores
    old, new = Channel("shop", 1), Channel("shop", 2)
    await store.commit(Change(announce={"shop": old}))
    await store.commit(Change(announce={"shop": new}))
    await store.announced(old)
    assert (await store.load()).undone.announce == {"shop": new}
    await store.announced(new)
    await store.announced(new)
    assert (await store.load()).undone.announce == {}


async def test_notices_and_held_changes_go_once_they_are_done(stores):
    (store, _), _ = stores
    notice = Notice("1", T0, "RolloutPaused", "shop", "shop-1", "why")
    await store.commit(Change(notices=[notice, notice], held=[HeldChange("h1", "r", "why")]))
    await store.notified("1")
    await store.notified("1")
    await store.commit(Change(unheld=["h1", "never-there"]))
    loaded = await store.load()
    assert (loaded.undone.notices, loaded.held) == ((), ())


async def test_a_revert_waits_until_it_is_done_and_is_asked_for_once(stores):
    (store, _), again = stores
    first = Revert("shop-1", T0, "shop", "main@sha1:2", "main@sha1:1", False, "RolledBack", "why")
    await store.commit(Change(reverts=[first]))
    await store.commit(Change(reverts=[msgspec.structs.replace(first, reason="again")]))
    store, _ = again()
    assert (await store.load()).undone.reverts == (first,)
    await store.commit(Change(reverted=["shop-1", "never-there"]))
    assert (await store.load()).undone.reverts == ()


async def test_rows_are_upserted_and_an_edited_plan_replaces_the_old(stores):
    (store, _), _ = stores
    await store.commit(begun())
    await store.commit(Change(rows={"shop-1": {0: s.Row("Queued", 0), 1: s.Row("Held", 0)}}))
    await store.commit(Change(rows={"shop-1": {0: s.Row("Failed", 0, reason="x")}}))
    assert await store.rows("shop-1") == {0: s.Row("Failed", 0, reason="x"), 1: s.Row("Held", 0)}
    edited = msgspec.structs.replace(plan(), next_rules=RULES)
    await store.commit(Change(plans=[edited]))
    found = await store.rollout("shop-1")
    assert found is not None
    assert (found.plan, found.head) == (edited, s.Progressing(0, T0))


async def test_rollouts_are_listed_newest_first_in_pages(stores):
    (store, _), _ = stores
    for number in range(5):
        await store.commit(begun(f"shop-{number}"))
    await store.commit(replace(begun("bar-1"), plans=[plan("bar-1", "bar")]))
    first = await store.rollouts("shop", limit=2)
    assert [r.plan.id for r in first] == ["shop-4", "shop-3"]
    rest = await store.rollouts("shop", after="shop-3")
    assert [r.plan.id for r in rest] == ["shop-2", "shop-1", "shop-0"]
    assert len(await store.rollouts()) == 6
    assert await store.rollout("nope") is None


async def test_only_the_newest_ended_rollouts_of_a_fleet_are_kept(stores):
    (store, _), _ = stores
    await store.commit(begun("running"))
    for number in range(ROLLOUTS_KEPT + 3):
        change = begun(f"shop-{number}", s.Succeeded(T0), T0)
        change.rows = {f"shop-{number}": {0: s.Row("Succeeded", 0)}}
        await store.commit(change)
    assert await store.rollout("shop-2") is None
    assert await store.rows("shop-2") == {}
    assert await store.rollout("shop-3") is not None
    assert await store.rollout("running") is not None


async def test_a_repeated_receipt_is_kept_once_and_old_ones_go(stores):
    (store, _), _ = stores
    await store.commit(Change(receipts=[receipt(1), receipt(2), receipt(1, release=A)]))
    await store.commit(Change(receipts=[receipt(2)]))
    assert [r.sequence for r in await store.receipts("n0")] == [2, 1]
    assert (await store.receipts("n0"))[-1].release == B
    await store.commit(Change(receipts=[receipt(n) for n in range(3, RECEIPTS_PER_NODE + 4)]))
    kept = await store.receipts("n0", limit=1000)
    assert len(kept) == RECEIPTS_PER_NODE
    assert kept[0].sequence == RECEIPTS_PER_NODE + 3
    await store.forget("n0")
    assert await store.receipts("n0") == ()


async def test_the_newest_receipt_of_each_node_about_some_releases(stores):
    (store, _), _ = stores
    await store.commit(
        Change(receipts=[receipt(1), receipt(2), receipt(3, release=A), receipt(1, node="n1")])
    )
    found = await store.receipts_for([B, "c" * 64])
    assert [(r.node, r.sequence) for r in found] == [("n0", 2), ("n1", 1)]
    assert await store.receipts_for([]) == ()


async def test_proposals_that_nobody_needs_are_dropped(stores):
    (store, _), _ = stores
    for fleet in ("shop", "bar"):
        await store.commit(
            Change(proposals=[Proposal(fleet, r, "main", RULES, {}) for r in (A, B)])
        )
    await store.drop_proposals("shop", [B])
    left = {(p.fleet, p.release) for p in (await store.load()).proposals}
    assert left == {("shop", B), ("bar", A), ("bar", B)}


async def test_last_contacts_keep_what_was_saved_last_and_the_last_observation(stores):
    (_, states), again = stores
    said = Observation(running=A, health="Healthy")
    ahead = T0 + timedelta(days=27_000)
    await states.save([NodeSeen("n0", ahead, said, "relay-1"), NodeSeen("n1", T0)])
    await states.save([NodeSeen("n0", T0, None, "hub")])  # the hub's clock was put right
    _, states = again()
    assert await states.all() == (NodeSeen("n0", T0, said, "hub"), NodeSeen("n1", T0))
    await states.forget("n0")
    await states.forget("n0")
    assert [x.node for x in await states.all()] == ["n1"]
