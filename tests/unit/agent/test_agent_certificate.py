"""When a node renews its certificate, and when it does something else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgewise.identity.card import Card
from edgewise.model.errors import TryLater
from edgewise.roles.node_certificate import CertificateKeeper
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog

START = datetime(2026, 1, 1, tzinfo=UTC)
LIFE = timedelta(days=45)
END = START + timedelta(days=365)
"""Of the CA above."""


class Line:
    """What the keeper needs of the node's line upwards."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.refused, self.stranger, self.looked = (asyncio.Event() for _ in range(3))
        self.outdated = False
        self.retrusts = 0
        self.issue()

    def issue(self) -> None:
        now = self.clock.now()
        until = min(now + LIFE, END)
        node, hub = "spiffe://eu.acme/node/n1", "spiffe://hub.acme/hub"
        self.card = Card(node, hub, "node", "n1", "eu", (), "1", now, until)

    async def renewed(self) -> None:
        self.refused.clear()

    def retrusted(self) -> None:
        self.retrusts += 1
        self.looked.set()


class Worker:
    def __init__(self, line: Line) -> None:
        self.line = line
        self.renewals: list[datetime] = []
        self.rejoins = 0
        self.asked = 0
        self.away = False
        self.knows_better = False

    async def renew(self, *, rejoin: bool) -> None:
        if self.away:
            raise TryLater("nobody answers")
        self.renewals.append(self.line.clock.now())
        self.rejoins += rejoin
        self.line.issue()

    async def retrust(self) -> bool:
        self.asked += 1
        return self.knows_better


class World:
    def __init__(self) -> None:
        self.clock = ManualClock(START)
        self.line = Line(self.clock)
        self.worker = Worker(self.line)
        line: Any = self.line
        keeper = CertificateKeeper(line, self.worker, self.clock, SeededChance(3), ListLog())
        self.task = asyncio.create_task(keeper.run())


@pytest.fixture
async def world() -> Any:
    made = World()
    await made.clock.run_for(timedelta(seconds=1))
    yield made
    made.task.cancel()


async def test_a_node_renews_at_the_jittered_half_of_every_life(world: World) -> None:
    await world.clock.run_for(timedelta(days=200))
    gaps = [
        b - a for a, b in zip([START, *world.worker.renewals], world.worker.renewals, strict=False)
    ]
    assert len(gaps) >= 7
    assert all(LIFE * 0.4 <= gap <= LIFE * 0.6 + timedelta(hours=1) for gap in gaps)
    assert world.worker.rejoins == 0


async def test_a_ca_that_ends_makes_no_storm_of_renewals(world: World) -> None:
    """Half of ever less is due ever sooner, for the whole region at the same time."""
    await world.clock.run_for(timedelta(days=365))
    assert len(world.worker.renewals) > 15
    last_day = [at for at in world.worker.renewals if at > END - timedelta(days=1)]
    last_hour = [at for at in last_day if at > END - timedelta(hours=1)]
    assert len(last_day) <= 30
    assert len(last_hour) <= 3


async def test_a_node_that_was_cut_off_past_its_certificate_rejoins(world: World) -> None:
    world.worker.away = True
    await world.clock.run_for(timedelta(days=60))
    world.worker.away = False
    await world.clock.run_for(timedelta(hours=1))
    assert world.worker.rejoins == 1
    assert world.line.card.validity.holds(world.clock.now())


async def test_after_another_root_began_to_sign_a_node_renews_within_the_hour(
    world: World,
) -> None:
    world.line.outdated = True
    world.line.looked.set()
    await world.clock.run_for(timedelta(minutes=5))
    assert world.worker.renewals == []
    world.line.renewed = lambda: _now_it_is(world)  # type: ignore[method-assign]
    await world.clock.run_for(timedelta(minutes=60))
    assert len(world.worker.renewals) == 1


async def _now_it_is(world: World) -> None:
    world.line.outdated = False


async def test_a_stranger_upstream_is_asked_about_less_and_less_often(world: World) -> None:
    for _ in range(200):
        world.line.stranger.set()
        await world.clock.run_for(timedelta(minutes=1))
    assert 5 <= world.worker.asked <= 20
    assert world.line.retrusts == 0
    world.worker.knows_better = True
    world.line.stranger.set()
    await world.clock.run_for(timedelta(hours=2))
    assert world.line.retrusts >= 1
