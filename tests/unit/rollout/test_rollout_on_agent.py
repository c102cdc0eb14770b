"""The node half, driven: a hub, a store and a body in memory, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from edgewise.model.errors import NeedsPerson, TryLater
from edgewise.protocol.channel import Bitmap, Channel, NodeRecord
from edgewise.protocol.content import DeliverySettings, NodeSettings, ProcessApp, Window
from edgewise.protocol.installed import Installed, InstalledApp
from edgewise.protocol.media import MEDIA
from edgewise.protocol.report import Receipt
from edgewise.protocol.sync import SyncReply
from edgewise.rollout.node_ports import Kept
from edgewise.rollout.on_agent import About, NodeRollout, Parts
from edgewise.rollout.windows import share_of
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog
from edgewise.testing.node import (
    MemoryBody,
    MemoryCrypto,
    MemoryLine,
    MemoryNode,
    MemoryReleases,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64


class Killed(Exception):
    """The agent is killed here."""


def release(digest: str, part: str, settings: NodeSettings | None = None) -> Installed:
    app = InstalledApp(part, ProcessApp("web", {}, ("run",)), "t", "apps/web")
    return Installed(digest, "n", "linux/amd64", (app,), settings=settings or NodeSettings())


def channel(sequence: int, stable: str, candidate: str = "", rollout: str = "r1") -> Channel:
    wave = Bitmap.of([0]).data if candidate else b""
    return Channel("f", sequence, stable, candidate, wave, rollout=rollout)


@dataclass
class World:
    clock: ManualClock = field(default_factory=ManualClock)
    line: MemoryLine = field(default_factory=lambda: MemoryLine(NodeRecord("n", 1, "f", 0)))
    releases: MemoryReleases = field(default_factory=MemoryReleases)
    body: MemoryBody = field(default_factory=MemoryBody)
    memory: MemoryNode = field(default_factory=MemoryNode)
    log: ListLog = field(default_factory=ListLog)

    def __post_init__(self) -> None:
        self.crypto = MemoryCrypto(self.line, self.releases)
        for digest in (A, B, C):
            self.crypto.offered[digest] = release(digest, f"part of {digest[:1]}")

    def rollout(self) -> NodeRollout:
        parts = Parts(
            self.line,
            self.crypto,
            self.releases,
            self.body,
            self.memory,
            self.clock,
            SeededChance(),
            self.log,
        )
        return NodeRollout(About("n", "linux/amd64", "1", "boot"), parts)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[NodeRollout]:
        rollout = self.rollout()
        task = asyncio.ensure_future(rollout.run())
        try:
            await self.run(1)
            yield rollout
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def run(self, seconds: float) -> None:
        for _ in range(10):
            await self.clock.run_for(timedelta())
        await self.clock.run_for(timedelta(seconds=seconds))

    async def on_a(self) -> None:
        """A node that runs A."""
        self.line.say(channel(1, A))
        async with self.agent() as rollout:
            await self.run(5)
            assert rollout.node.running == A
        self.line.receipts.clear()
        self.body.runs.clear()

    def outcomes(self) -> list[tuple[str, str]]:
        found = [msgspec.json.decode(s.payload, type=Receipt) for s in self.line.receipts]
        return list(dict.fromkeys((r.outcome, r.release) for r in found))


async def test_a_new_node_takes_the_stable_release_and_says_so() -> None:
    world = World()
    await world.on_a()
    assert world.releases.current == A
    assert world.line.heard[-1].channel == 1


async def test_who_looks_at_files_is_told_that_another_release_has_its_own_interval() -> None:
    world = World()
    await world.on_a()
    async with world.agent() as rollout:
        await world.run(10)
        rollout.moved.clear()
        world.line.say(channel(2, A, B))
        await world.run(60)
        assert rollout.node.running == B
        assert rollout.moved.is_set()


async def test_a_candidate_arrives_and_a_signed_receipt_goes_up() -> None:
    world = World()
    await world.on_a()
    async with world.agent() as rollout:
        world.line.say(channel(2, A, B))
        await world.run(5)
        assert rollout.node.running == B
        assert world.outcomes() == [("Succeeded", B)]
        assert rollout.node.owed == ()
        assert world.body.confirmed == 2
        assert {A, B} <= world.releases.collected[-1]


async def test_an_app_that_does_not_settle_brings_the_old_release_back() -> None:
    world = World()
    await world.on_a()
    world.body.verdicts[B] = "app web: exit code 3"
    async with world.agent() as rollout:
        world.line.say(channel(2, A, B))
        await world.run(5)
        assert (rollout.node.running, world.releases.current) == (A, A)
        assert world.body.runs[-1] == A
        assert world.outcomes() == [("Failed", B)]
        assert rollout.observation().phase == "Blocked"
        fetched = list(world.crypto.fetched)
        world.line.say(channel(3, A, B))
        await world.run(300)
        assert world.crypto.fetched == fetched


async def test_a_release_that_cannot_be_applied_brings_the_old_release_back() -> None:
    world = World()
    await world.on_a()
    world.body.refuses[B] = "the disk is full"
    async with world.agent() as rollout:
        world.line.say(channel(2, A, B))
        await world.run(5)
        assert rollout.node.running == A
        assert "the disk is full" in rollout.node.failed[0].reason


async def test_the_same_parts_under_a_new_digest_restart_nothing() -> None:
    world = World()
    await world.on_a()
    world.crypto.offered[B] = release(B, "part of a")
    async with world.agent() as rollout:
        world.line.say(channel(2, A, B))
        await world.run(5)
        assert rollout.node.running == B
        assert world.outcomes() == [("Succeeded", B)]


async def test_a_newer_release_replaces_the_one_that_is_being_fetched() -> None:
    world = World()
    await world.on_a()
    async with world.agent() as rollout:
        world.crypto.fetching = asyncio.Event()
        world.line.say(channel(2, A, B))
        await world.run(2)
        assert rollout.node.state.target.release == B  # type: ignore[union-attr]
        world.line.say(channel(3, A, C, "r2"))
        await world.run(2)
        world.crypto.fetching.set()
        await world.run(5)
        assert rollout.node.running == C
        assert world.body.updates == [A, C]


async def test_a_change_that_was_begun_is_finished_before_the_next() -> None:
    world = World()
    await world.on_a()
    async with world.agent() as rollout:
        world.body.settling = asyncio.Event()
        world.line.say(channel(2, A, B))
        await world.run(2)
        world.line.say(channel(3, A, C, "r2"))
        await world.run(2)
        assert world.body.updates[-1] == B
        world.body.settling.set()
        await world.run(5)
        assert rollout.node.running == C
        assert world.outcomes() == [("Succeeded", B), ("Succeeded", C)]


async def test_a_fetch_that_breaks_off_is_repeated_with_growing_waits() -> None:
    world = World()
    await world.on_a()
    world.crypto.errors = [TryLater("the link is down") for _ in range(5)]
    async with world.agent() as rollout:
        world.line.say(channel(2, A, B))
        await world.run(2)
        assert rollout.observation().phase == "Downloading"
        await world.run(300)
        assert rollout.node.running == B
        assert world.crypto.fetched.count(B) == 6


async def test_a_fetch_that_needs_a_person_is_reported_and_not_repeated() -> None:
    world = World()
    await world.on_a()
    world.crypto.errors = [NeedsPerson("the disk is full", hint="free 2 MB")]
    async with world.agent() as rollout:
        world.line.say(channel(2, A, B))
        await world.run(600)
        assert rollout.node.running == A
        assert world.outcomes() == [("Failed", B)]
        assert world.crypto.fetched.count(B) == 1


async def test_a_node_applies_only_inside_its_window() -> None:
    world = World()
    await world.on_a()
    nights = NodeSettings(apply_window=Window("0 2 * * *", 3600))
    world.crypto.offered[B] = release(B, "p", nights)
    async with world.agent() as rollout:
        world.line.say(channel(2, A, B))
        await world.run(3600)
        assert rollout.observation().phase == "Ready"
        said = world.line.heard[-1].observation
        assert said is not None, "the hub was told what it waits for"
        opens = datetime(2026, 1, 1, 2, tzinfo=UTC)
        assert (said.phase, said.window, said.opens) == ("Ready", "apply", opens)
        await world.run(2 * 3600)
        assert rollout.node.running == B
        assert (rollout.observation().window, rollout.observation().opens) == ("", None)


async def test_a_node_says_when_it_may_download() -> None:
    world = World()
    nights = NodeSettings(download_window=Window("0 2 * * *", 3600))
    world.crypto.offered[A] = release(A, "part of a", nights)
    await world.on_a()
    async with world.agent() as rollout:
        world.line.say(channel(2, A, B))
        await world.run(3600)
        seen = rollout.observation()
        assert (seen.phase, seen.window, seen.target) == ("Downloading", "download", B)
        world.line.say(channel(3, A))
        await world.run(5)
        assert rollout.observation().window == "", "nothing is waited for any more"


async def test_a_fetch_stops_when_the_window_closes_and_goes_on_in_the_next() -> None:
    world = World()
    nights = NodeSettings(download_window=Window("0 2 * * *", 3600))
    world.crypto.offered[A] = release(A, "part of a", nights)
    await world.on_a()
    world.crypto.fetching = asyncio.Event()
    async with world.agent() as rollout:
        world.line.say(channel(2, A, B))
        await world.run(2 * 3600 + 60)
        assert world.crypto.fetched.count(B) == 1
        assert rollout.observation().window == ""
        await world.run(3600)
        seen = rollout.observation()
        assert (seen.window, seen.opens) == ("download", datetime(2026, 1, 2, 2, tzinfo=UTC))
        world.crypto.fetching.set()
        await world.run(10 * 3600)
        assert rollout.node.running == A, "nothing is fetched outside the window"
        await world.run(14 * 3600)
        assert world.crypto.fetched.count(B) == 2
        assert rollout.node.running == B


async def test_nodes_start_to_fetch_spread_where_the_fleet_asks_for_it() -> None:
    world = World()
    travel = DeliverySettings(spread_s=3600.0)
    world.crypto.offered[A] = release(A, "part of a", NodeSettings(delivery=travel))
    await world.on_a()
    async with world.agent() as rollout:
        world.line.say(channel(2, A, B))
        await world.run(1)
        wait = 3600.0 * share_of("n", B)
        assert rollout.observation().window == "download"
        await world.run(wait - 10)
        assert B not in world.crypto.fetched
        await world.run(60)
        assert rollout.node.running == B


async def test_receipts_wait_on_disk_while_the_node_is_offline() -> None:
    world = World()
    await world.on_a()
    async with world.agent() as rollout:
        world.body.settling = asyncio.Event()
        world.line.say(channel(2, A, B))
        await world.run(2)
        world.line.cut()
        world.body.settling.set()
        await world.run(86400)
        assert rollout.node.running == B
        assert len(rollout.node.owed) == 1
    assert world.memory.kept is not None
    assert len(world.memory.kept.node.owed) == 1
    world.line.up = True
    async with world.agent() as rollout:
        await world.run(120)
        assert world.outcomes() == [("Succeeded", B)]
        assert rollout.node.owed == ()


async def test_a_node_that_starts_offline_runs_what_it_has() -> None:
    world = World()
    await world.on_a()
    world.line.up = False
    async with world.agent():
        await world.run(60)
        assert world.body.runs == [A]


async def test_the_observation_is_sent_only_when_it_changed() -> None:
    world = World()
    await world.on_a()
    async with world.agent() as rollout:
        await world.run(10)
        said = sum(1 for r in world.line.heard if r.observation is not None)
        for _ in range(20):
            rollout.changed()
            await world.run(5)
        assert sum(1 for r in world.line.heard if r.observation is not None) == said


async def test_a_full_disk_makes_a_step_wait_and_nothing_is_done_unremembered() -> None:
    world = World()
    await world.on_a()
    async with world.agent() as rollout:
        world.memory.full = True
        world.line.say(channel(2, A, B))
        await world.run(60)
        assert world.crypto.fetched == [A]
        world.memory.full = False
        await world.run(60)
        assert rollout.node.running == B


@pytest.mark.parametrize("bad", [False, True])
async def test_an_agent_killed_around_any_write_ends_as_if_it_had_not_been(bad: bool) -> None:
    """Killed before and after every single write of a whole change, in turn."""

    async def play(kill_at: int, after: bool) -> tuple[bool, World]:
        world = World()
        await world.on_a()
        if bad:
            world.body.verdicts[B] = "exit code 3"
        world.memory.writes = 0
        killed = False

        def maybe(kept: Kept) -> None:
            nonlocal killed
            if not killed and world.memory.writes == kill_at:
                killed = True
                raise Killed

        if after:
            world.memory.after_write = maybe
        else:
            world.memory.before_write = maybe
        world.line.say(channel(2, A, B))
        for _ in range(2):
            rollout = world.rollout()
            task = asyncio.ensure_future(rollout.run())
            await world.run(120)
            task.cancel()
            await asyncio.wait([task])
        return killed, world

    points = 0
    for after in (False, True):
        for kill_at in range(1 if after else 0, 20):
            killed, world = await play(kill_at, after)
            if not killed:
                break
            points += 1
            kept = world.memory.kept
            assert kept is not None
            assert kept.node.running == (A if bad else B)
            assert world.releases.current == kept.node.running
            assert world.body.runs[-1] == kept.node.running
            assert world.outcomes() == [("Failed" if bad else "Succeeded", B)]
            assert kept.node.owed == ()
    assert points >= 12  # sibling: the kill really happened at each of them


ORDER = SyncReply(metadata={MEDIA: b"an order"})


async def test_a_node_does_what_a_stick_says_until_its_hub_is_back() -> None:
    world = World()
    world.line.say(channel(3, A))
    async with world.agent() as rollout:
        await world.run(20)
        world.line.cut()
        world.crypto.carried = channel(3, B)
        await rollout.offered(ORDER)
        await world.run(20)
        assert rollout.node.running == B
        world.line.up = True
        await world.run(120)
        assert rollout.node.running == A  # the hub's channel of the same number counts
    asked = [request.channel for request in world.line.heard]
    assert (asked[-1], 0 in asked[2:]) == (3, True)


async def test_an_order_that_comes_over_the_network_is_not_looked_at() -> None:
    world = World()
    world.crypto.carried = channel(9, C)
    world.line.beside = ORDER.metadata
    world.line.say(channel(1, A))
    async with world.agent() as rollout:
        await world.run(20)
        assert rollout.node.running == A
