"""The hub is killed in every rollout state, and at every step of saving and doing."""

from datetime import timedelta

import pytest

from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.rollouts import SqliteNodeStates, SqliteRollouts
from edgewise.model.errors import TryLater
from edgewise.model.quantity import Share
from edgewise.model.rules import Gate, RolloutRules, StageRule
from edgewise.protocol.content import Window
from edgewise.testing.fleet_in_memory import FleetInMemory
from edgewise.testing.rollouts import MemoryRollouts

ONE, TWO = "1" * 64, "2" * 64
GATE = Gate("web", "http", {"url": "http://web"}, timedelta(minutes=2))
RULES = RolloutRules(
    stages=(
        StageRule("canary", min_targets=2, bake=timedelta(minutes=5), gates=(GATE,)),
        StageRule("rest", approval=True, max_concurrent=Share(count=2)),
    ),
    max_unavailable=Share(count=1),
    failure_threshold=Share(percent=30),
)


class Killed(BaseException):
    """The hub dies here."""


def stage_of(name: str) -> str:
    return "canary" if name in ("n0", "n1") else "rest"


async def fleet_on_one(store=None, states=None) -> FleetInMemory:
    fleet = FleetInMemory(6, store=store, states=states)
    await fleet.engine.start()
    simple = RolloutRules(stages=(StageRule("canary"), StageRule("rest")))
    await fleet.engine.propose(fleet.proposal(ONE, simple, stage_of), actor="git")
    await fleet.minute(10)
    assert {n.running for n in fleet.nodes.values()} == {ONE}
    return fleet


async def state(fleet: FleetInMemory) -> str:
    return (await fleet.engine.rollouts())[0].state


async def into(fleet: FleetInMemory, wanted: str) -> None:
    """Bring a rollout of TWO into a state."""
    engine = fleet.engine
    if wanted == "WaitingForTargets":
        fleet.nodes["n0"].away = fleet.nodes["n1"].away = True
        await fleet.minute(8)
    if wanted == "WaitingForWindow":
        for node in fleet.nodes.values():
            node.window = Window("30 0 * * *", 7200)
    if wanted in ("RollingBack", "RolledBack"):
        fleet.broken = lambda node, release: release == TWO and node.name == "n1"
        for node in fleet.nodes.values():
            node.takes = 4
    await engine.propose(fleet.proposal(TWO, RULES, stage_of), actor="git")
    await fleet.settle()
    if wanted == "Paused":
        await engine.command(await running(fleet), "pause", actor="alice")
    for _ in range(40):
        if await state(fleet) == wanted:
            return
        await fleet.minute()
        if await state(fleet) == "WaitingForApproval" != wanted:
            await engine.command(await running(fleet), "approve", actor="alice")
    raise AssertionError(f"{wanted} is never reached, it is {await state(fleet)}")


async def running(fleet: FleetInMemory) -> str:
    return (await fleet.engine.rollouts())[0].id


async def finish(fleet: FleetInMemory) -> None:
    for node in fleet.nodes.values():
        node.away = False
    for _ in range(60):
        now = await state(fleet)
        if now == "Paused":
            await fleet.engine.command(await running(fleet), "resume", actor="alice")
        if now == "WaitingForApproval":
            await fleet.engine.command(await running(fleet), "approve", actor="alice")
        await fleet.minute()


@pytest.mark.parametrize(
    "wanted",
    [
        "Progressing",
        "WaitingForTargets",
        "WaitingForWindow",
        "WaitingForApproval",
        "Baking",
        "Paused",
        "RollingBack",
        "RolledBack",
        "Succeeded",
    ],
)
async def test_a_hub_that_is_killed_in_any_state_goes_on_where_it_was(tmp_path, wanted):
    database = Database.open(tmp_path / "hub.db")
    fleet = await fleet_on_one(SqliteRollouts(database), SqliteNodeStates(database))
    await into(fleet, wanted)
    before = await fleet.engine.detail(await running(fleet))
    channel = fleet.engine.channel("shop")
    database.close()  # with no last word: it is killed

    database = Database.open(tmp_path / "hub.db")
    fleet.store, fleet.states = SqliteRollouts(database), SqliteNodeStates(database)
    fleet.clock.advance(timedelta(hours=2))  # longer than nodeTimeout
    await fleet.restart_hub()
    after = await fleet.engine.detail(await running(fleet))
    assert (after.summary, after.stages) == (before.summary, before.stages)
    assert fleet.engine.channel("shop") == channel
    await fleet.settle()
    assert await state(fleet) == wanted, "the hub's absence changes nothing"

    await finish(fleet)
    good = wanted not in ("RollingBack", "RolledBack")
    assert await state(fleet) == ("Succeeded" if good else "RolledBack")
    assert {n.running for n in fleet.nodes.values()} == {TWO if good else ONE}
    database.close()


async def test_a_hub_that_is_killed_right_after_nodes_said_that_they_wait_still_knows_it(tmp_path):
    database = Database.open(tmp_path / "hub.db")
    fleet = await fleet_on_one(SqliteRollouts(database), SqliteNodeStates(database))
    for node in fleet.nodes.values():
        node.window = Window("30 0 * * *", 7200)
    await fleet.engine.propose(fleet.proposal(TWO, RULES, stage_of), actor="git")
    await fleet.settle()
    await fleet.exchange()  # they were told, and have not begun
    await fleet.engine.flush()
    await fleet.minute()
    assert await state(fleet) == "WaitingForWindow"
    database.close()

    database = Database.open(tmp_path / "hub.db")
    fleet.store, fleet.states = SqliteRollouts(database), SqliteNodeStates(database)
    await fleet.restart_hub()
    await fleet.settle()  # and nobody says it again
    assert await state(fleet) == "WaitingForWindow"
    database.close()


class MortalStore(MemoryRollouts):
    """Dies before or after the n-th commit."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1
        self.after = False

    async def commit(self, change) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        await super().commit(change)
        if self.left == 0:
            raise Killed


async def story(fleet: FleetInMemory) -> None:
    """A bad release comes and goes; whenever the hub dies it is started again."""

    async def survive(what) -> None:
        try:
            await what()
        except Killed:
            await fleet.restart_hub()

    async def propose() -> None:
        await fleet.engine.propose(fleet.proposal(TWO, RULES, stage_of), actor="git")

    fleet.broken = lambda node, release: release == TWO and node.name == "n1"
    await survive(propose)
    await survive(propose)  # git is compiled again after a restart
    for _ in range(50):
        await survive(fleet.minute)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 12))
async def test_a_hub_that_is_killed_around_any_commit_loses_nothing(at, after):
    store = MortalStore()
    fleet = await fleet_on_one(store)
    store.left, store.after = at, after
    await story(fleet)
    assert store.left <= 0, "the hub has died"
    assert await state(fleet) == "RolledBack"
    assert {n.running for n in fleet.nodes.values()} == {ONE}
    assert fleet.engine.fleet_status("shop").quarantined == (TWO,)
    assert len(await fleet.engine.rollouts()) == 2


@pytest.mark.parametrize("at", range(1, 11))
async def test_a_hub_that_is_killed_around_any_effect_repeats_it_harmlessly(at):
    fleet = await fleet_on_one()
    left = [at]

    def die(what: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    fleet.board.before = die
    await story(fleet)
    assert left[0] <= 0, "the hub has died"
    assert {n.running for n in fleet.nodes.values()} == {ONE}
    sequences = [c.sequence for c in fleet.board.channels]
    assert sequences == sorted(sequences), "an older channel never follows a newer one"
    assert fleet.board.channels[-1] == fleet.engine.channel("shop")
    texts = [n.text for n in fleet.board.notices.values() if n.event == "RolloutFailed"]
    assert len(texts) == 1


async def test_receipts_that_could_not_be_saved_are_refused_so_that_nodes_send_them_again():
    store = MortalStore()
    fleet = await fleet_on_one(store)
    await fleet.engine.propose(fleet.proposal(TWO, RULES, stage_of), actor="git")
    await fleet.settle()

    async def full(change) -> None:
        raise TryLater("the disk is full")

    kept, store.commit = store.commit, full  # type: ignore[method-assign]
    with pytest.raises(TryLater):
        await fleet.minute(3)
    store.commit = kept  # type: ignore[method-assign]
    assert fleet.engine.fleet_status("shop").rollout_state in ("Progressing", "WaitingForTargets")


async def test_a_publisher_that_is_away_holds_nothing_but_the_announcement():
    fleet = await fleet_on_one()

    def away(what: str) -> None:
        raise TryLater("the content store is away")

    fleet.board.before = away
    await fleet.engine.propose(fleet.proposal(TWO, RULES, stage_of), actor="git")
    with pytest.raises(TryLater):
        await fleet.engine.perform()
    fleet.board.before = lambda what: None
    await fleet.engine.perform()
    assert fleet.board.channels[-1].candidate == TWO
